"""Similarity-preserving distillation (Tung & Mori 2019)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from penjing.recover.losses.base import FeatureLoss, loss


@loss("sp")
class Similarity(FeatureLoss):
    """``‖G_student - G_teacher‖² / N²`` with the row-normalised similarities ``G = Q Qᵀ`` (their equations
    1-4).

    Unchanged by rotations and scale of either side; student and teacher may differ in width.
    """

    aligned: ClassVar[bool] = False

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Zero for batches of equal similarities."""
        return (_similarity(student) - _similarity(teacher)).square().mean()


def _similarity(feature: Tensor) -> Tensor:
    q_NF = feature.flatten(1)
    return F.normalize(q_NF @ q_NF.T, dim=1)
