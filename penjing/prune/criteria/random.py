"""Chance: the baseline that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from penjing.prune.criteria.base import Criterion, Material, Normalisation, Scores, criterion


@criterion("random")
@dataclass(frozen=True)
class Random(Criterion):
    """Uniform scores from the seed."""

    normalisation: Normalisation = "none"

    def raw_scores(self, material: Material) -> Iterable[Scores]:
        """Draw in the order of the groups, so a seed fixes the plan."""
        generator = np.random.default_rng(material.seed)
        return [generator.random(group.size) for group in material.coupling.groups]
