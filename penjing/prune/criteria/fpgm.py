"""FPGM: a filter close to the others' geometric median can be replaced by them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from penjing.graph import Group, Member
from penjing.prune.criteria.base import Material, MemberCriterion, Scores, criterion


@criterion("fpgm")
@dataclass(frozen=True)
class Fpgm(MemberCriterion):
    """Sum of distances of a slot's weights to all other slots' (He et al. 2019, "Filter pruning via
    geometric median", eq. 4).
    """

    def members(self, group: Group, material: Material) -> list[Member]:
        """The weights that produce the slots (dim 0), where there are any."""
        weights = super().members(group, material)
        return [m for m in weights if m.dim == 0] or weights

    def member_scores(self, member: Member, material: Material) -> Scores:
        """Σ_j ‖w_i − w_j‖₂ with one row per slot, from the Gram matrix (memory size², not size²·fan-in)."""
        weight = material.tensor(member.tensor).movedim(member.dim, 0)
        index = torch.from_numpy(member.index.reshape(-1)).to(weight.device)
        owned = weight[index.clamp_min(0)]
        owned[index < 0] = 0  # rows of the index are filled up with -1
        rows = owned.reshape(member.index.shape[0], -1).to(torch.float64)
        gram = rows @ rows.T
        norms = gram.diagonal()
        squared = (norms[:, None] + norms[None, :] - 2 * gram).clamp_min_(0)
        return np.asarray(squared.sqrt().sum(dim=1).cpu().numpy(), dtype=np.float64)
