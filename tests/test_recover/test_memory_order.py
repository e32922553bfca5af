"""Networks with convolutions beside weights of other dimensions, in the memory order of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj


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
