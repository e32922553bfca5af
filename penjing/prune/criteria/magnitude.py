"""Weights close to zero do little: the Lp norm of a slot's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.graph import Member
from penjing.prune.criteria.base import Material, MemberCriterion, Scores, criterion, slot_sums


@criterion("magnitude")
@dataclass(frozen=True)
class Magnitude(MemberCriterion):
    """(Σ |w|^p)^(1/p) over the weights of a slot (Li et al. 2017, "Pruning filters for efficient convnets",
    p = 1).

    Attributes:
        p: 1, 2 or any positive order.
    """

    p: float = 2.0

    def member_scores(self, member: Member, material: Material) -> Scores:
        """The Lp norm, accumulated in float64."""
        powers = material.once(
            (member.tensor, member.dim, self.p),
            lambda: self._powers(material.tensor(member.tensor), member.dim),
        )
        return slot_sums(member, powers) ** (1.0 / self.p)

    def _powers(self, weight: Tensor, dim: int) -> Tensor:
        """Σ |w|^p for each position of a dim."""
        others = tuple(d for d in range(weight.ndim) if d != dim)
        if not others:
            return weight.abs().to(torch.float64) ** self.p
        norms: Tensor = torch.linalg.vector_norm(weight, ord=self.p, dim=others, dtype=torch.float64)
        return norms**self.p
