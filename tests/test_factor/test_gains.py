"""How far outputs follow a layer's error: against the algebra of linear networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penjing.factor.gains import output_gains


def _layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def test_gains_of_a_linear_network() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8), nn.Linear(8, 3)
    model = nn.Sequential(first, last).requires_grad_(False)
    x = torch.randn(256, 6)
    y = model(x)
    found = output_gains(
        model, _layers(model), [x[at : at + 64] for at in range(0, 256, 64)], torch.Generator().manual_seed(0)
    )
    variance = float((y - y.mean(0)).square().sum())
    assert found["1"] == pytest.approx(float(y.square().sum()) / variance, rel=1e-5)
    expected = float((first(x).square() * last.weight.square().sum(0)).sum()) / variance
    assert found["0"] == pytest.approx(expected, rel=0.1)


class _Net(nn.Module):
    """A layer that reaches nothing, one that is called twice, an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice, self.lost = nn.Conv2d(2, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = nn.functional.relu(self.conv(x), inplace=True).mean((2, 3))
        self.lost(pooled)
        return {"y": self.twice(self.twice(pooled)), "index": pooled.argmax(1)}


def test_what_does_not_reach_the_output_has_no_gain() -> None:
    torch.manual_seed(0)
    model = _Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = output_gains(model, _layers(model), [torch.randn(9, 2, 6, 6)], torch.Generator())
    assert found.keys() == {"conv", "twice"}
    assert all(gain > 0 for gain in found.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


def test_outputs_without_a_way_back_have_none() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = self.layer(x)
                return out

    model = Frozen()
    assert output_gains(model, _layers(model), [torch.randn(4, 3)], torch.Generator()) == {}
