"""Decoupled knowledge distillation (Zhao et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from penjing.recover.losses.base import Answers, LogitLoss, Need, loss


@loss("dkd")
class DecoupledDistillation(LogitLoss):
    """``T² · (α · TCKD + β · NCKD)`` (their equation 7).

    TCKD is the divergence of (target class, all others) as a two-way choice; NCKD that of the
    distributions among the other classes. Plain KD is ``TCKD + (1 - p_target) · NCKD`` with the teacher's
    target probability (equation 6).

    Attributes:
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "target"})

    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=8.0, ge=0)

    def parts(self, answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
        """TCKD, NCKD and the teacher's target probability, each ``[N]``, without the factor T²."""
        assert answers.target is not None, "the loop checks what a loss needs"
        student_NK, teacher_NK, _ = self.softened(answers)
        target_N = answers.target if answers.target.dim() == 1 else answers.target.argmax(1)
        is_target_NK = F.one_hot(target_N, student_NK.shape[1]).bool()

        def split(logits_NK: Tensor) -> tuple[Tensor, Tensor]:
            log_p_NK = logits_NK.log_softmax(1)
            others_NK = log_p_NK.masked_fill(is_target_NK, float("-inf"))
            both_N2 = torch.stack([log_p_NK[is_target_NK], others_NK.logsumexp(1)], 1)
            # a very small number instead of -inf: 0 · inf would be NaN in the divergence and its gradient
            among_NK = logits_NK.masked_fill(is_target_NK, -1e4).log_softmax(1)
            return both_N2, among_NK

        student_both, student_among = split(student_NK)
        teacher_both, teacher_among = split(teacher_NK)
        tckd_N = F.kl_div(student_both, teacher_both, reduction="none", log_target=True).sum(1)
        nckd_N = F.kl_div(student_among, teacher_among, reduction="none", log_target=True).sum(1)
        return tckd_N, nckd_N, teacher_both[:, 0].exp()

    def __call__(self, answers: Answers) -> Tensor:
        """Mean over samples."""
        tckd_N, nckd_N, _ = self.parts(answers)
        t = self.temperature or answers.temperature
        return t * t * (self.alpha * tckd_N + self.beta * nckd_N).mean()
