"""Cosine distance of features across channels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from penjing.recover.losses.base import FeatureLoss, loss


@loss("cosine")
class FeatureAngle(FeatureLoss):
    """``1 - cos`` of the angle between channel vectors, mean over samples and positions; ignores lengths."""

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Zero where the vectors point the same way."""
        return 1 - F.cosine_similarity(student, teacher, dim=1).mean()
