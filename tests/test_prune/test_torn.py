"""Which groups are made even so that the class serves, and which keep what their scores say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.prune import apply, masked_equivalence, prune
from penjing.prune.criteria import Criterion, Material
from penjing.prune.criteria.base import Scores
from penjing.prune.gradual import prune_gradually
from penjing.recover import RecoverConfig


@dataclass(frozen=True)
class BySlot(Criterion):
    """Rising in each group, and another height in every group: shares differ widely under scope "global"."""

    def raw_scores(self, material: Material) -> Iterable[Scores]:
        groups = material.coupling.groups
        return [np.linspace(1, 2 + at % 3, group.size) for at, group in enumerate(groups)]


class PaddedBlock(nn.Module):
    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.pad = (wide - narrow) // 2
        self.conv1, self.conv2 = nn.Conv2d(narrow, wide, 3, padding=1), nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x).relu())
        out = out + F.pad(x, (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(out)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 16, 3, padding=1), PaddedBlock(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.stem(x).relu()).mean((2, 3)))
        return out


def test_only_the_sides_of_a_padding_are_made_even() -> None:
    """A convolution whose output is as wide as its input ties neither to the other."""
    torch.manual_seed(0)
    model, x = Padded(), torch.randn(2, 3, 8, 8)
    scores = BySlot(normalisation="none")
    result = prune(model, x, 0.4, scores, scope="global")
    kept = {name: len(edit.kept) / edit.size for name, edit in result.plan.groups.items()}
    assert result.in_place, result.reason
    sides = {share for name, share in kept.items() if "#" in name}
    assert len(sides) == 1
    others = {kept.get(name, 1.0) for name in ("stem.weight:0", "block.conv1.weight:0")}
    assert len(others) == 2, kept
    assert masked_equivalence(model, result, x) <= 1e-4


def test_rounds_keep_the_class_as_one_step_does() -> None:
    torch.manual_seed(0)
    model, x = Padded(), torch.randn(8, 3, 8, 8)
    data = [(x, torch.arange(8) % 4)]
    done = prune_gradually(
        model,
        x[:2],
        data,
        data,
        0.5,
        rounds=2,
        scope="global",
        criterion=BySlot(normalisation="none"),
        config=RecoverConfig(epochs=0),
    )
    assert done.plan is not None
    assert done.plan.in_place, done.plan.reason
    assert isinstance(done.model, Padded)
    assert done.rounds[-1].params < done.rounds[0].params
    torch.testing.assert_close(done.model(x), apply(model, done.plan, x[:2]).model(x))
