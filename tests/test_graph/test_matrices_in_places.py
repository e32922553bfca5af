"""Ops whose values depend on positions along some of their dims leave the other dims alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.prune.masked import masked_equivalence

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "tril": lambda x: x.tril(-1),
    "triu": lambda x: x.triu(1),
    "exponential": torch.linalg.matrix_exp,
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3),
    "diagonal of other dims": lambda x: x.transpose(1, 3).diagonal(0, 2, 1),
    "embedded": lambda x: torch.diag_embed(x[..., 0]),
    "embedded in front": lambda x: torch.diag_embed(x[..., 0], 0, 0, 2).permute(1, 3, 0, 2),
    "cross": lambda x: torch.linalg.cross(x, x.roll(1, -1) + 1),
    "cross along rows": lambda x: torch.cross(x, x.roll(1, -2) * 2, dim=2),
    "turned": lambda x: x.rot90(1, (2, 3)),
}


class Heads(nn.Module):
    """Matrices of 3 × 3 for each of eight channels."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 1), nn.Conv1d(8, 3, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.between(self.first(x).tanh()).flatten(2))
        return made


@pytest.mark.parametrize("name", CASES)
def test_the_other_dims_may_go(name: str) -> None:
    torch.manual_seed(0)
    model, x = Heads(CASES[name]).eval(), torch.randn(2, 2, 3, 3)
    result = pj.prune(model, x, ratio=0.5)
    assert isinstance(result.model, Heads)
    assert result.model.first.out_channels == 4
    assert masked_equivalence(model, result, x) < 1e-5


def test_the_dims_themselves_stay() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.out(self.rows(x).tril())
            return made

    x = torch.randn(2, 6, 4)
    model = Square()
    result = pj.prune(model, x, ratio=0.5)
    assert not result.plan.groups
    assert masked_equivalence(model, result, x) < 1e-5
