"""Networks with convolutions beside weights of other dimensions, in the memory order of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.errors import RecoverError


class Capsules(nn.Module):
    """A convolution, and votes by a weight of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 8, 3, stride=2)
        self.votes = nn.Parameter(torch.randn(1, 9, 5, 6, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        capsules = self.layer(x).flatten(2).mT
        return (self.votes @ capsules[:, :, None, :, None]).squeeze(-1).sum(1).square().sum(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("asked", [None, True])
def test_weights_of_five_dimensions_are_recovered(asked: Any) -> None:
    images = [torch.randn(4, 1, 8, 8) for _ in range(3)]
    network = Capsules().eval()
    small = pj.prune(network, images[0], ratio=0.4)
    found = pj.recover(
        small.model, network, images, {"epochs": 2, "lr": 0.01, "channels_last": asked}, plan=small.plan
    )
    votes = found.model.votes
    assert isinstance(votes, Tensor)
    assert votes.is_contiguous()
    assert not torch.equal(votes, small.model.votes)  # type: ignore[arg-type]


class Stem(nn.Module):
    """Two branches from three channels, as RepVGG trains: one convolution is 1 × 1 with a stride."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.point = nn.Conv2d(3, 11, 3, 2, 1), nn.Conv2d(3, 11, 1, 2)
        self.head = nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.wide(x) + self.point(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def test_gradients_are_those_of_any_other_kernel() -> None:
    """With the channels last, oneDNN's AVX2 kernel has the gradient of the 1 × 1 convolution wrong."""
    images = [torch.randn(16, 3, 8, 8) for _ in range(2)]
    teacher, student = Stem().eval(), Stem()
    with torch.no_grad():
        student.head.weight.mul_(-1)
    config = {"epochs": 1, "lr": 0.5, "precision": "fp32"}

    def trained() -> Tensor:
        return pj.recover(student, teacher, images, config).model.get_parameter("point.weight").detach()

    found = trained()
    torch._C._set_mkldnn_enabled(False)  # what torch.backends.mkldnn.flags does, without its warning
    try:
        expected = trained()
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert not torch.equal(expected, student.point.weight)
    assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(RecoverError, match="at point: with the channels last, the gradient"):
        pj.recover(student, teacher, images, {**config, "channels_last": True})
