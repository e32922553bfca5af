"""LAMP: magnitude, scaled so that one global threshold treats layers fairly."""

from __future__ import annotations

from dataclasses import dataclass

from penjing.graph import Member
from penjing.prune.criteria.base import Material, Normalisation, Scores, criterion
from penjing.prune.criteria.magnitude import Magnitude


@criterion("lamp")
@dataclass(frozen=True)
class Lamp(Magnitude):
    """Squared L2 norm of a slot over the sum of those not smaller (Lee et al. 2021, eq. 3, over slots)."""

    normalisation: Normalisation = "lamp"

    def member_scores(self, member: Member, material: Material) -> Scores:
        """Squared norm."""
        norms: Scores = super().member_scores(member, material) ** 2
        return norms
