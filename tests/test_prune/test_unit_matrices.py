"""Unit matrices and triangles made in a forward: rows and columns go together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.prune.masked import masked_equivalence

X = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


class Adapted(nn.Module):
    """A linear layer with an adapter of low rank, whose rows are made a given length (DoRA)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=False)
        self.down, self.up = nn.Linear(inputs, 3, bias=False), nn.Linear(3, outputs, bias=False)
        self.size = nn.Parameter(torch.rand(outputs) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        change = self.up(self.down(torch.eye(self.down.weight.shape[1]))).T
        length = torch.linalg.norm(self.base.weight + change, dim=1)
        found: Tensor = (self.base(x) + self.up(self.down(x))) * (self.size / length)
        return found


class Symmetric(nn.Module):
    def __init__(self, diagonal: int = 0) -> None:
        super().__init__()
        self.diagonal = diagonal

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu(self.diagonal) + weight.tril(-1).T


def adapted() -> nn.Module:
    return nn.Sequential(Adapted(12, 24), nn.ReLU(), Adapted(24, 20), nn.ReLU(), Adapted(20, 4))


def symmetric(diagonal: int = 0) -> nn.Module:
    inner = nn.Linear(24, 24)
    nn.utils.parametrize.register_parametrization(inner, "weight", Symmetric(diagonal))
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), inner, nn.ReLU(), nn.Linear(24, 4))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 24), nn.Linear(24, 4)
        self.turn = nn.Parameter(0.1 * torch.randn(24, 24))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x)) @ (1.5 * torch.eye(len(self.turn)) - self.turn)
        found: Tensor = self.outer(h)
        return found


@pytest.mark.parametrize("make", [adapted, symmetric, Residual])
def test_rows_go_with_their_columns(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    result = pj.prune(model, X, ratio=0.4)
    assert result.in_place, result.reason
    assert not [frozen for frozen in result.frozen if frozen.kind in ("structure", "unsolved")]
    assert masked_equivalence(model, result, X) < 1e-5


def test_a_triangle_away_from_the_diagonal_stays_whole() -> None:
    model = symmetric(2).eval()
    result = pj.prune(model, X, ratio=0.4)
    assert masked_equivalence(model, result, X) < 1e-5
    assert {frozen.op for frozen in result.frozen} >= {"aten.triu.default"}
