"""The class of a network serves where a norm has no weight that would tell its size."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from penjing.prune import prune


class Between(nn.Module):
    """A norm between two convolutions, or two linear layers."""

    def __init__(self, layer: nn.Module, linear: bool) -> None:
        super().__init__()
        self.a = nn.Linear(3, 16) if linear else nn.Conv2d(3, 16, 3, padding=1)
        self.layer = layer
        self.b = nn.Linear(16, 4) if linear else nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.layer(self.a(x))))
        return y


@pytest.mark.parametrize(
    ("norm", "linear", "attributes"),
    [
        (nn.InstanceNorm2d(16), False, {"num_features": 8}),
        (nn.GroupNorm(4, 16, affine=False), False, {"num_groups": 2, "num_channels": 8}),
        (nn.BatchNorm2d(16, affine=False, track_running_stats=False), False, {"num_features": 8}),
        (nn.LayerNorm(16, elementwise_affine=False), True, {"normalized_shape": (8,)}),
        (nn.RMSNorm(16, elementwise_affine=False), True, {"normalized_shape": (8,)}),
    ],
    ids=["instance", "group", "batch", "layer", "rms"],
)
def test_norms_without_weights_follow(norm: nn.Module, linear: bool, attributes: dict[str, object]) -> None:
    model = Between(norm, linear).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an instance norm of another number of features warns, and goes on
        result = prune(model, torch.randn(2, 3) if linear else torch.randn(2, 3, 8, 8), ratio=0.5)
    assert result.in_place, result.reason
    layer = result.model.get_submodule("layer")
    assert {name: getattr(layer, name) for name in attributes} == attributes
