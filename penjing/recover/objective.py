"""The whole loss of a run: terms with weights, what they need, where features come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from penjing.batches import Batch, classifies, logits_of
from penjing.errors import RecoverError
from penjing.recover.blocks import block_specs
from penjing.recover.config import LossTerm, RecoverConfig
from penjing.recover.features import FeatureSpec, feature_specs
from penjing.recover.losses import Answers, FeatureLoss, LogitLoss, Loss, make_loss

Feature = TypeVar("Feature", Tensor, tuple[Tensor, Tensor])

_OF_BLOCKS = 40.0
"""Weight of the blocks' relative error beside scores at the default temperature."""


@dataclass(frozen=True)
class _Term:
    label: str
    term: LossTerm
    loss: Loss
    specs: tuple[FeatureSpec, ...] = ()


def default_terms(labelled: bool, has_teacher: bool, *, classes: bool = True) -> tuple[LossTerm, ...]:
    """Cross-entropy alone, KD alone, or 0.1 and 0.9 of both, by what there is to learn from; the original's
    outputs where they are no scores of classes.

    Raises:
        RecoverError: without classes and without an original.
    """
    if not classes:
        if has_teacher:
            return (LossTerm(name="outputs"),)
        raise RecoverError(
            "the targets are not classes of the outputs, and there is no original to learn from",
            remedy="Give int64 labels, one for each sample or position, or name the losses",
        )
    if not has_teacher:
        return (LossTerm(name="ce"),)
    if not labelled:
        return (LossTerm(name="kd"),)
    return LossTerm(name="ce", weight=0.1), LossTerm(name="kd", weight=0.9)


def with_blocks(terms: Sequence[LossTerm]) -> tuple[LossTerm, ...]:
    """Distillation of scores with what every block gives held to the original's block as well."""
    if not any(term.name == "kd" for term in terms):
        return tuple(terms)
    return *terms, LossTerm(name="mse", weight=_OF_BLOCKS, options={"layers": "blocks"})


class Objective:
    """The sum of weighted losses.

    Args:
        config: Options of the run.
        terms: The terms (from `RecoverConfig.losses` or `default_terms`).
        student: The model that learns.
        teacher: The first teacher, when feature losses look into it.
        plan: What was pruned, to line features up.
        example: Gives inputs of the models, where blocks are looked for.

    Raises:
        RecoverError: for layers that do not exist or cannot be lined up.
    """

    def __init__(
        self,
        config: RecoverConfig,
        terms: Sequence[LossTerm],
        student: nn.Module,
        teacher: Any,
        plan: Any,
        example: Callable[[], Any],
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
                if loss.layers == "blocks":
                    specs = block_specs(student, teacher, plan, example())
                else:
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
                if spec.key not in unique or not unique[spec.key].kept:
                    unique[spec.key] = spec
        return tuple(unique.values())

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any({"teacher", "features"} & part.loss.needs for part in self.terms)

    @property
    def needs_target(self) -> bool:
        """Whether any term learns from labels."""
        return any("target" in part.loss.needs for part in self.terms)

    @property
    def needs_outputs(self) -> bool:
        """Whether any term compares all outputs."""
        return any("outputs" in part.loss.needs for part in self.terms)

    def check(self, batch: Batch, has_teacher: bool, logits_NK: Tensor) -> None:
        """Refuse a batch that lacks what a term needs.

        Raises:
            RecoverError: no labels for a loss with labels, or none that are classes of the outputs; no
                teacher for a distillation loss, or one score where it compares several.
        """
        for part in self.terms:
            if "target" in part.loss.needs and batch.target is None:
                raise RecoverError(
                    f"the loss {part.label!r} needs labels and the data has none",
                    remedy="Give batches as (inputs, target), or use losses without labels such as 'kd'",
                )
            if "target" in part.loss.needs and not classifies(batch.target, logits_NK):
                raise RecoverError(
                    f"the loss {part.label!r} needs labels that are classes of the outputs",
                    remedy="Give one int64 label for each sample or position, or use the loss 'outputs'",
                )
            if isinstance(part.loss, LogitLoss) and logits_NK.shape[1] < 2:
                raise RecoverError(
                    f"the loss {part.label!r} compares scores of classes and there is one",
                    remedy="Use the loss 'outputs', which compares the outputs as they are",
                )
            if "teacher" in part.loss.needs and not has_teacher and batch.teacher_logits is None:
                raise RecoverError(
                    f"the loss {part.label!r} needs a teacher",
                    remedy="Pass the original network as the teacher, or data with 'teacher_logits'",
                )

    def __call__(
        self,
        student: Sequence[Tensor],
        student_features: dict[str, Tensor],
        teachers: Sequence[Sequence[Tensor]],
        teacher_features: dict[str, tuple[Tensor, Tensor]],
        target: Tensor | None,
        progress: float,
        *,
        labels: Any = None,
        label_weight: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss and each term's value without its weight.

        With several teachers, a loss on outputs is the mean over them.

        Args:
            student: Its outputs ``[N, …]``, the scores first.
            student_features: By layer.
            teachers: The outputs of each teacher.
            teacher_features: By layer, kept channels and all.
            target: Class indices ``[N]`` or probabilities ``[N, K]``.
            progress: How much of the run is done, 0 to 1.
            labels: The targets as the data gave them: they show which dimension the classes are.
            label_weight: Of the losses with labels: they are means over the labels that count, and a step's
                batches, or processes, may have more or fewer of them.
        """
        student_NK = logits_of(student[0], labels)
        total = student_NK.new_zeros((), dtype=student_NK.float().dtype)
        values: dict[str, Tensor] = {}
        for part in self.terms:
            asks_teacher = "teacher" in part.loss.needs
            side = 0 if isinstance(part.loss, FeatureLoss) and part.loss.aligned else 1
            losses = []
            for teacher in teachers if asks_teacher else ((),):
                answers = Answers(
                    student_NK=student_NK,
                    target=target,
                    teacher_NK=logits_of(teacher[0], labels) if teacher else None,
                    student_outputs=student,
                    teacher_outputs=teacher,
                    student_features={
                        s.key: s.channels_second(_taken(student_features, s, "student")) for s in part.specs
                    },
                    teacher_features={
                        s.key: s.channels_second(_taken(teacher_features, s, "teacher")[side])
                        for s in part.specs
                    },
                    temperature=self._config.temperature,
                    label_smoothing=self._config.label_smoothing,
                )
                if "target" in part.loss.needs:
                    answers = self._counting(answers)
                empty = len(answers.student_NK) == 0
                losses.append(answers.student_NK.float().sum() if empty else part.loss(answers))
            value = sum(losses[1:], start=losses[0]) / len(losses)
            if "target" in part.loss.needs:
                value = label_weight * value
            values[part.label] = value.detach()
            total = total + part.term.weight_at(progress) * value
        return total, values

    def _counting(self, answers: Answers) -> Answers:
        """The samples and positions whose label counts."""
        target = answers.target
        if target is None or target.is_floating_point():
            return answers
        counts_N = target != self._config.ignore_index
        if bool(counts_N.all()):
            return answers
        teacher_NK = answers.teacher_NK
        return replace(
            answers,
            student_NK=answers.student_NK[counts_N],
            target=target[counts_N],
            teacher_NK=None if teacher_NK is None else teacher_NK[counts_N],
        )


def _taken(features: Mapping[str, Feature], spec: FeatureSpec, whose: str) -> Feature:
    """What was taken at this place.

    Raises:
        RecoverError: nothing was: the forward left the layer out.
    """
    if spec.key not in features:
        raise RecoverError(
            f"the {whose}'s forward did not call this layer, so it gave no feature",
            layer=spec.layer,
            remedy="Name layers that every forward calls; networks read from files, and those that train in "
            "int8, have none to name: use losses on outputs",
        )
    return features[spec.key]
