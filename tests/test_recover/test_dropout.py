from __future__ import annotations

import pytest
import torch
from torch import nn

from penjing.graph import GraphModel, trace
from penjing.recover.dropout import dropout_at


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.0))


@pytest.mark.parametrize("traced", [False, True])
def test_the_probability_holds_inside_and_comes_back(traced: bool) -> None:
    model: nn.Module = network()
    if traced:
        model = GraphModel(trace(model, torch.rand(2, 4)))
    x = torch.rand(8, 4)
    model.train()
    torch.manual_seed(0)
    before = model(x)
    with dropout_at(model, 0.0):
        assert torch.equal(model(x), model(x))
    torch.manual_seed(0)
    assert torch.equal(model(x), before)
    assert not torch.equal(model(x), before)


def test_inactive_dropout_stays_inactive() -> None:
    model = network()
    with dropout_at(model, 0.3):
        assert [m.p for m in model if isinstance(m, nn.Dropout)] == [0.3, 0.0]
    with pytest.raises(ZeroDivisionError), dropout_at(model, 0.3):
        _ = 1 / 0
    assert [m.p for m in model if isinstance(m, nn.Dropout)] == [0.5, 0.0]
