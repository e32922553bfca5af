"""Relational knowledge distillation (Park et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from penjing.recover.losses.base import FeatureLoss, loss


@loss("rkd")
class Relational(FeatureLoss):
    """Distances and angles among the samples of a batch (their equations 5-8), Huber loss.

    Unchanged by rotations and shifts of either side and, distances being divided by their mean, by its
    scale. Student and teacher may differ in width.

    Attributes:
        distance: Weight of the distance-wise part.
        angle: Weight of the angle-wise part.
    """

    aligned: ClassVar[bool] = False

    distance: float = Field(default=25.0, ge=0)
    angle: float = Field(default=50.0, ge=0)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Zero for two batches of equal shape in space."""
        s_NF, t_NF = student.flatten(1), teacher.flatten(1)
        total = s_NF.sum() * 0
        if self.distance:
            total = total + self.distance * F.smooth_l1_loss(_distances(s_NF), _distances(t_NF))
        if self.angle:
            total = total + self.angle * F.smooth_l1_loss(_angles(s_NF), _angles(t_NF))
        return total


def _distances(x_NF: Tensor) -> Tensor:
    """Distances between all pairs, divided by their mean; ``[N, N]``."""
    gap_NNF = x_NF[:, None] - x_NF[None]
    # the square root has no gradient at zero: the diagonal is left out before it
    off_NN = ~torch.eye(len(x_NF), dtype=torch.bool, device=x_NF.device)
    square_NN = gap_NNF.square().sum(2)
    distance_NN = torch.where(off_NN, square_NN.clamp_min(1e-12), torch.ones_like(square_NN)).sqrt() * off_NN
    return distance_NN / (distance_NN.sum() / off_NN.sum().clamp_min(1)).clamp_min(1e-12)


def _angles(x_NF: Tensor) -> Tensor:
    """Cosines of the angle at sample i between samples j and k; ``[N, N, N]``."""
    unit_NNF = F.normalize(x_NF[None] - x_NF[:, None], dim=2, eps=1e-8)
    return unit_NNF @ unit_NNF.transpose(1, 2)
