"""Attention transfer (Zagoruyko & Komodakis 2017)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from penjing.errors import RecoverError
from penjing.recover.losses.base import FeatureLoss, loss


@loss("at")
class AttentionTransfer(FeatureLoss):
    """Distance between normalised attention maps, ``Σ_c |A_c|^p`` over channels (their equation 2).

    Maps have no channel axis, so student and teacher may differ in width.

    Attributes:
        power: The exponent p.
    """

    aligned: ClassVar[bool] = False

    power: float = Field(default=2.0, gt=0)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared distance of the maps, ``[N, positions]``; zero for maps equal up to scale.

        Raises:
            RecoverError: for features without positions, whose maps would all be equal.
        """
        if student.dim() < 3:
            raise RecoverError(
                "attention is compared over positions, and the features have none",
                remedy='Name convolution layers or blocks: {"at": {"layers": ["layer?"]}}',
            )
        distance = self._map(student) - self._map(teacher)
        return distance.square().sum(1).mean()

    def _map(self, feature: Tensor) -> Tensor:
        return F.normalize(feature.abs().pow(self.power).mean(1).reshape(len(feature), -1), dim=1)
