"""First-order Taylor: how much the loss would change if a slot were zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penjing.graph import Group, Member
from penjing.prune.criteria.base import Material, Scores, criterion, reduce_members, slot_sums
from penjing.prune.criteria.gradients import GradientCriterion, gradients


def per_position(value: Tensor, dim: int) -> Tensor:
    """Sum over every dim but one, in float64."""
    others = [d for d in range(value.ndim) if d != dim]
    return value.sum(dim=others, dtype=torch.float64) if others else value.to(torch.float64)


@criterion("taylor")
@dataclass(frozen=True)
class Taylor(GradientCriterion):
    """Mean over batches of (Σ g·w)² over a slot's weights (Molchanov et al. 2019, "Importance estimation",
    eq. 8).

    All parameters of the group count, each member by itself.
    """

    def raw_scores(self, material: Material) -> Iterable[Scores]:
        """Accumulate the squared sums of every member over the batches."""
        groups = material.coupling.groups
        members = [[m for m in g.members if material.is_param(m.tensor)] for g in groups]
        sums = [[np.zeros(g.size) for _ in row] for g, row in zip(groups, members, strict=True)]
        batches = 0
        for grads in gradients(material, self.ignore_index):
            batches += 1
            for row, totals in zip(members, sums, strict=True):
                for i, member in enumerate(row):
                    totals[i] += self._squared(member, grads, material)
        return [
            self._reduce(g, [t / max(batches, 1) for t in row]) for g, row in zip(groups, sums, strict=True)
        ]

    def _squared(self, member: Member, grads: dict[str, Tensor], material: Material) -> Scores:
        gradient = grads.get(member.tensor)
        if gradient is None:
            return np.zeros(len(member.index))
        product = gradient * material.tensor(member.tensor)
        squared: Scores = slot_sums(member, per_position(product, member.dim)) ** 2
        return squared

    def _reduce(self, group: Group, rows: list[Scores]) -> Scores:
        return reduce_members(rows, self.reduction, group.size)
