"""The original's outputs as they are: for networks that do not classify (Ba & Caruana 2014, on logits)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from penjing.recover.losses.base import Answers, Loss, Need, loss


@loss("outputs")
class Outputs(Loss):
    """``E‖student − teacher‖² / Var(teacher)``, mean over the outputs: all of them, not only the first.

    Each output is measured in its own variance over the batch, so boxes and scores weigh alike.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "outputs"})

    def __call__(self, answers: Answers) -> Tensor:
        """0 where they are equal, 1 for a student that only knows the mean."""
        parts = []
        for student, teacher in zip(answers.student_outputs, answers.teacher_outputs, strict=True):
            target = teacher.float()
            spread = target.var(correction=0) + 1e-6 * target.square().mean() + 1e-12
            parts.append((student.float() - target).square().mean() / spread)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total / len(parts)
