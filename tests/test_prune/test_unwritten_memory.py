"""A forward that fills a tensor it took empty (rotary and other halves of heads, for one)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from penjing.prune import masked_equivalence, prune


class Filled(nn.Module):
    """Two layers write the two ends of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(10, 12), nn.Linear(10, 8)
        self.after = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = x.new_empty(x.shape[0], 20)
        both[:, :12] = self.one(x)
        both[:, 12:] = self.two(x)
        return self.after(both)  # type: ignore[no-any-return]


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what is not written with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_in_new_memory")
def test_what_memory_held_is_not_in_the_reference() -> None:
    torch.manual_seed(0)
    model, x = Filled().eval(), torch.randn(4, 10)
    assert masked_equivalence(model, prune(model, x, ratio=0.4), x) < 1e-5
