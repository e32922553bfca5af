"""Knowledge distillation (Hinton, Vinyals & Dean 2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from penjing.recover.losses.base import Answers, LogitLoss, loss


@loss("kd")
class Distillation(LogitLoss):
    """``T² · KL(teacher_T ‖ student_T)``, mean over samples.

    The factor T² keeps the gradient's size independent of the temperature (their section 2.1).
    """

    def __call__(self, answers: Answers) -> Tensor:
        """Zero, with zero gradient, where both give equal probabilities."""
        student_NK, teacher_NK, t = self.softened(answers)
        return (
            t
            * t
            * F.kl_div(
                student_NK.log_softmax(1), teacher_NK.log_softmax(1), reduction="batchmean", log_target=True
            )
        )
