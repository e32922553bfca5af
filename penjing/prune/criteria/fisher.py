"""Second order: the loss rises by ½ h w² where h is the curvature, here the diagonal of the Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.prune.criteria.base import Material, Scores, criterion, reduce_members, slot_sums
from penjing.prune.criteria.gradients import GradientCriterion, gradients
from penjing.prune.criteria.taylor import per_position


@criterion("fisher")
@dataclass(frozen=True)
class Fisher(GradientCriterion):
    """½ Σ E[g²] w² over a slot's weights (LeCun et al. 1990, "Optimal brain damage", eq. 5, h ≈ E[g²]).

    Each batch gives one gradient; the smaller the batches, the closer to the per-sample Fisher.
    """

    def raw_scores(self, material: Material) -> Iterable[Scores]:
        """Accumulate squared gradients, then weigh."""
        squares: dict[str, Tensor] = {}
        batches = 0
        for grads in gradients(material, self.ignore_index):
            batches += 1
            for name, gradient in grads.items():
                held = squares.setdefault(name, torch.zeros_like(gradient))
                held.addcmul_(gradient, gradient)
        per_dim: dict[tuple[str, int], Tensor] = {}
        scores = []
        for group in material.coupling.groups:
            rows = []
            for member in group.members:
                if member.tensor not in squares:
                    continue
                key = (member.tensor, member.dim)
                if key not in per_dim:
                    cost = squares[member.tensor] * material.tensor(member.tensor).square()
                    per_dim[key] = per_position(cost, member.dim) / (2 * batches)
                rows.append(slot_sums(member, per_dim[key]))
            scores.append(reduce_members(rows, self.reduction, group.size))
        return scores
