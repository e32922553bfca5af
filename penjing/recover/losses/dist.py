"""DIST: match relations instead of values (Huang et al. 2022)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from penjing.recover.losses.base import Answers, LogitLoss, loss


@loss("dist")
class Relations(LogitLoss):
    """``T² · (β · inter + γ · intra)`` (their equation 11).

    ``inter`` is 1 minus the Pearson correlation of student and teacher over the classes, for each sample;
    ``intra`` the same over the samples, for each class. Neither sees a change of scale or offset of what
    it correlates.

    Attributes:
        beta: Weight of the relation among classes.
        gamma: Weight of the relation among samples.
    """

    temperature: float | None = Field(default=1.0, gt=0)
    beta: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)

    def __call__(self, answers: Answers) -> Tensor:
        """Mean over samples (inter) and classes (intra)."""
        student_NK, teacher_NK, t = self.softened(answers)
        p_NK, q_NK = student_NK.softmax(1), teacher_NK.softmax(1)
        inter = 1 - correlation(p_NK, q_NK).mean()
        intra = 1 - correlation(p_NK.T, q_NK.T).mean()
        return t * t * (self.beta * inter + self.gamma * intra)


def correlation(a_MN: Tensor, b_MN: Tensor, eps: float = 1e-8) -> Tensor:
    """Pearson correlation of each row of ``a`` with the same row of ``b``; shape ``[M]``."""
    a_MN = a_MN - a_MN.mean(1, keepdim=True)
    b_MN = b_MN - b_MN.mean(1, keepdim=True)
    scale_M = (a_MN.square().sum(1) * b_MN.square().sum(1) + eps**2).sqrt()
    return (a_MN * b_MN).sum(1) / scale_M
