"""Mean squared error of features, channel by channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from penjing.recover.losses.base import FeatureLoss, loss


@loss("mse")
class FeatureError(FeatureLoss):
    """Mean squared error between the student's features and the same channels of the teacher's.

    Attributes:
        relative: Divide by the mean square of the teacher's feature, so layers of any scale count alike.
    """

    in_float32 = False

    relative: bool = True

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Zero exactly where the features are equal."""
        error: Tensor = _MeanSquaredError.apply(student, teacher)
        return error / _mean_square(teacher).clamp_min(1e-12) if self.relative else error


class _MeanSquaredError(torch.autograd.Function):
    """In the features' own format: copies in float32 cost more than all the rest of it."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean, a scalar."""
        difference = student - teacher
        ctx.save_for_backward(difference)
        return _mean_square(difference)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Of the student's feature alone."""
        (difference,) = ctx.saved_tensors
        return difference * (grad * (2 / difference.numel())), None


def _mean_square(feature: Tensor) -> Tensor:
    """In float32 or better; the sum is taken in float32 whatever the format."""
    length = torch.linalg.vector_norm(feature)
    mean: Tensor = length.to(torch.promote_types(feature.dtype, torch.float32)).square() / feature.numel()
    return mean
