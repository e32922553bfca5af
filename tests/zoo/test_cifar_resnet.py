"""The CIFAR ResNets whose shortcuts pad with zero channels: pruned inside the blocks and along the stream."""

from __future__ import annotations

import pytest
import torch

from penjing.graph import couple, trace
from penjing.models import build
from penjing.prune import masked_equivalence, prune

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet20", pytest.param("resnet56", marks=pytest.mark.slow)])
def test_the_residual_stream_is_pruned(name: str) -> None:
    model = build(name, num_classes=10).eval()
    result = prune(model, X, ratio=0.5, criterion="random", seed=1)
    stream = {
        name: len(dims[0]) for name, dims in result.plan.tensors.items() if name.endswith("conv2.weight")
    }
    assert stream["layer1.0.conv2.weight"] == 8
    assert stream["layer2.0.conv2.weight"] == 16
    assert stream["layer3.0.conv2.weight"] == 32
    assert result.after["params"] <= 0.3 * result.before["params"]
    assert masked_equivalence(model, result, X) <= 1e-4


def test_channels_of_the_first_stage_go_with_the_middle_of_the_later_ones() -> None:
    coupling = couple(trace(build("resnet20", num_classes=10), X))
    group = next(g for g in coupling.groups if g.id == "conv1.weight:0")
    places = {(m.tensor, m.dim): m.index[:, 0].tolist() for m in group.members}
    assert places[("layer2.0.conv2.weight", 0)] == list(range(8, 24))
    assert places[("layer3.0.conv2.weight", 0)] == list(range(24, 40))
