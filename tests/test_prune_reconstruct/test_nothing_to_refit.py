"""Where nothing was removed, as under a latency that int8 alone reaches, no layer is fitted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from penjing.prune import prune
from penjing.prune.reconstruct import reconstruct


def test_a_network_that_answers_as_the_original_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    data: Any = [torch.randn(32, 6) for _ in range(2)]
    whole = prune(model, data[0][:2], ratio=0.0)
    found = reconstruct(whole.model, model, whole.plan, data)
    assert found.layers == ()
    assert found.error_before == found.error_after
    assert any("nothing to refit" in note for note in found.notes)
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), model.parameters(), strict=True))
    with torch.no_grad():  # changed without a plan: by zeros, say
        whole.model[0].weight[:4] = 0  # type: ignore[index]
    assert reconstruct(whole.model, model, whole.plan, data).layers
    half = prune(model, data[0][:2], ratio=0.5)
    assert reconstruct(half.model, model, half.plan, data).layers
