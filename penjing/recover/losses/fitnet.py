"""FitNet hints (Romero et al. 2015)."""

from __future__ import annotations

from torch import Tensor

from penjing.recover.losses.base import FeatureLoss, loss


@loss("fitnet")
class Hint(FeatureLoss):
    """``½ ‖hint - guided‖²`` for each sample (their equation 3), mean over samples.

    The regressor of the paper is not needed: the plan says which of the teacher's channels the student has.
    """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Zero exactly where the features are equal."""
        return 0.5 * (student - teacher).square().flatten(1).sum(1).mean()
