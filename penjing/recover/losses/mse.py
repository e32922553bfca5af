"""Mean squared error of features, channel by channel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from penjing.recover.losses.base import FeatureLoss, loss


@loss("mse")
class FeatureError(FeatureLoss):
    """Mean squared error between the student's features and the same channels of the teacher's.

    Attributes:
        relative: Divide by the mean square of the teacher's feature, so layers of any scale count alike.
    """

    relative: bool = True

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Zero exactly where the features are equal."""
        error = F.mse_loss(student, teacher)
        return error / teacher.square().mean().clamp_min(1e-12) if self.relative else error
