"""Weights close to zero do little: the Lp norm of a slot's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
        weight = material.tensor(member.tensor)
        others = tuple(d for d in range(weight.ndim) if d != member.dim)
        if others:
            norms = torch.linalg.vector_norm(weight, ord=self.p, dim=others, dtype=torch.float64)
        else:
            norms = weight.abs().to(torch.float64)
        return slot_sums(member, norms**self.p) ** (1.0 / self.p)
