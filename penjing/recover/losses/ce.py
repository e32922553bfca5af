"""Cross-entropy with the labels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from penjing.recover.losses.base import Answers, Loss, Need, loss


@loss("ce")
class CrossEntropy(Loss):
    """Cross-entropy with class indices or class probabilities, with the run's label smoothing."""

    needs: ClassVar[frozenset[Need]] = frozenset({"target"})

    def __call__(self, answers: Answers) -> Tensor:
        """Mean over samples, in nats."""
        assert answers.target is not None, "the loop checks what a loss needs"
        return F.cross_entropy(
            answers.student_NK.float(), answers.target, label_smoothing=answers.label_smoothing
        )
