"""Weights close to zero do little: the Lp norm of a slot's weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from penjing.graph import Member
from penjing.prune.criteria.base import Material, MemberCriterion, Scores, criterion, slot_sums

_CHUNK = 1 << 18  # weights at a time: what stays in the cache


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
        """Σ |w|^p for each position of a dim: float32 over runs of memory, float64 over the runs."""
        x_BNA = weight.reshape(prod(weight.shape[:dim]), weight.shape[dim], -1)
        if x_BNA.dtype in (torch.float16, torch.bfloat16):
            x_BNA = x_BNA.float()
        if len(x_BNA) == 1:
            norms_N: Tensor = torch.linalg.vector_norm(x_BNA[0], ord=self.p, dim=1)
            return norms_N.double() ** self.p
        rows = max(1, _CHUNK // x_BNA[0].numel())
        sums_NA = torch.zeros(x_BNA.shape[1:], dtype=torch.float64, device=weight.device)
        for chunk in torch.split(x_BNA, rows):
            powers = chunk.square() if self.p == 2 else chunk.abs() ** self.p
            sums_NA += powers.sum(0)
        return sums_NA.sum(1)
