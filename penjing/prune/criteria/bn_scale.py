"""The scale of the normalisation after a layer says how much of the channel passes."""

from __future__ import annotations

from dataclasses import dataclass

from penjing.graph import Group, Member
from penjing.prune.criteria.base import Material, MemberCriterion, Scores, criterion, slot_sums


@criterion("bn_scale")
@dataclass(frozen=True)
class BnScale(MemberCriterion):
    """|γ| of the normalisation layers (Liu et al. 2017, "Learning efficient convolutional networks").

    Groups that no normalisation scales are scored by all of their one-dimensional parameters, and those
    without any by nothing: all their slots weigh the same.
    """

    def members(self, group: Group, material: Material) -> list[Member]:
        """One-dimensional weights; biases only where nothing else is."""
        flat = [
            m for m in group.members if material.is_param(m.tensor) and material.tensor(m.tensor).ndim == 1
        ]
        return [m for m in flat if not m.tensor.endswith("bias")] or flat

    def member_scores(self, member: Member, material: Material) -> Scores:
        """|γ| summed over the positions of a slot."""
        return slot_sums(member, material.tensor(member.tensor).abs())
