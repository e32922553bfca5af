"""The whole loss of a run: terms with weights, what they need, where features come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from penjing.errors import RecoverError
from penjing.recover.batches import Batch
from penjing.recover.config import LossTerm, RecoverConfig
from penjing.recover.features import FeatureSpec, feature_specs
from penjing.recover.losses import Answers, FeatureLoss, Loss, make_loss


@dataclass(frozen=True)
class _Term:
    label: str
    term: LossTerm
    loss: Loss
    specs: tuple[FeatureSpec, ...] = ()


def default_terms(labelled: bool, has_teacher: bool) -> tuple[LossTerm, ...]:
    """Cross-entropy alone, KD alone, or 0.1 and 0.9 of both, by what there is to learn from."""
    if not has_teacher:
        return (LossTerm(name="ce"),)
    if not labelled:
        return (LossTerm(name="kd"),)
    return LossTerm(name="ce", weight=0.1), LossTerm(name="kd", weight=0.9)


class Objective:
    """The sum of weighted losses.

    Args:
        config: Options of the run.
        terms: The terms (from `RecoverConfig.losses` or `default_terms`).
        student: The model that learns.
        teacher: The first teacher, when feature losses look into it.
        plan: What was pruned, to line features up.

    Raises:
        RecoverError: for layers that do not exist or cannot be lined up.
    """

    def __init__(
        self, config: RecoverConfig, terms: Sequence[LossTerm], student: nn.Module, teacher: Any, plan: Any
    ) -> None:
        self._config = config
        self.terms: list[_Term] = []
        for index, term in enumerate(terms):
            loss = make_loss(term.name, term.options)
            specs: tuple[FeatureSpec, ...] = ()
            if isinstance(loss, FeatureLoss):
                if not isinstance(teacher, nn.Module):
                    raise RecoverError(
                        f"the loss {term.name!r} compares features and there is no teacher module",
                        remedy="Pass the original nn.Module as the teacher",
                    )
                specs = feature_specs(student, teacher, loss.layers, plan, aligned=loss.aligned)
            repeated = sum(other.name == term.name for other in terms) > 1
            label = f"{term.name}_{index}" if repeated else term.name
            self.terms.append(_Term(label, term, loss, specs))

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All places where features are taken, once each."""
        unique: dict[str, FeatureSpec] = {}
        for part in self.terms:
            for spec in part.specs:
                # an aligned loss and one that is not may look at one place: the alignment serves the first
                if spec.key not in unique or unique[spec.key].kept is None:
                    unique[spec.key] = spec
        return tuple(unique.values())

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any({"teacher", "features"} & part.loss.needs for part in self.terms)

    def check(self, batch: Batch, has_teacher: bool) -> None:
        """Refuse a batch that lacks what a term needs.

        Raises:
            RecoverError: no labels for a loss with labels, no teacher for a distillation loss.
        """
        for part in self.terms:
            if "target" in part.loss.needs and batch.target is None:
                raise RecoverError(
                    f"the loss {part.label!r} needs labels and the data has none",
                    remedy="Give batches as (inputs, target), or use losses without labels such as 'kd'",
                )
            if "teacher" in part.loss.needs and not has_teacher and batch.teacher_logits is None:
                raise RecoverError(
                    f"the loss {part.label!r} needs a teacher",
                    remedy="Pass the original network as the teacher, or data with 'teacher_logits'",
                )

    def __call__(
        self,
        student_NK: Tensor,
        student_features: dict[str, Tensor],
        teachers_NK: Sequence[Tensor],
        teacher_features: dict[str, tuple[Tensor, Tensor]],
        target: Tensor | None,
        progress: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss and each term's value without its weight.

        With several teachers, a logit loss is the mean over them.
        """
        total = student_NK.new_zeros((), dtype=student_NK.float().dtype)
        values: dict[str, Tensor] = {}
        for part in self.terms:
            asks_teacher = "teacher" in part.loss.needs
            keys = [spec.key for spec in part.specs]
            aligned = isinstance(part.loss, FeatureLoss) and part.loss.aligned
            losses = [
                part.loss(
                    Answers(
                        student_NK=student_NK,
                        target=target,
                        teacher_NK=teacher_NK,
                        student_features={key: student_features[key] for key in keys},
                        teacher_features={key: teacher_features[key][0 if aligned else 1] for key in keys},
                        temperature=self._config.temperature,
                        label_smoothing=self._config.label_smoothing,
                    )
                )
                for teacher_NK in (teachers_NK if asks_teacher else (None,))
            ]
            value = sum(losses[1:], start=losses[0]) / len(losses)
            values[part.label] = value.detach()
            total = total + part.term.weight_at(progress) * value
        return total, values
