"""What a loss is given, what it is, and the registry that finds it by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from penjing.config import Config
from penjing.errors import RecoverError
from penjing.recover.registry import Registry

Need = Literal["target", "teacher", "features", "outputs"]


@dataclass(frozen=True)
class Answers:
    """What student and teacher said about one batch.

    Attributes:
        student_NK: The student's logits.
        target: Class indices ``[N]`` (int64) or class probabilities ``[N, K]``; None for unlabelled data.
        teacher_NK: The teacher's logits, without gradient.
        student_outputs: Every output of the student ``[N, …]``, where a loss needs them.
        teacher_outputs: The teacher's, without gradient.
        student_features: The student's features by layer, ``[N, C, …]``.
        teacher_features: The teacher's, already restricted to the channels the student kept where the loss
            compares channel by channel.
        temperature: The run's temperature, for losses that do not set their own.
        label_smoothing: The run's label smoothing.
    """

    student_NK: Tensor
    target: Tensor | None = None
    teacher_NK: Tensor | None = None
    student_outputs: Sequence[Tensor] = ()
    teacher_outputs: Sequence[Tensor] = ()
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    temperature: float = 4.0
    label_smoothing: float = 0.0


class Loss(Config):
    """One loss: its options are its fields, calling it gives a scalar.

    Class attributes:
        needs: What of `Answers` must be there.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def __call__(self, answers: Answers) -> Tensor:
        """The loss of one batch, a scalar averaged over samples."""


class LogitLoss(Loss):
    """A loss between the student's and the teacher's logits.

    Attributes:
        temperature: Softening of both sides; None takes the run's.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})

    temperature: float | None = Field(default=None, gt=0)

    def softened(self, answers: Answers) -> tuple[Tensor, Tensor, float]:
        """Student and teacher logits divided by the temperature, in float32, and the temperature."""
        assert answers.teacher_NK is not None, "the loop checks what a loss needs"
        t = self.temperature or answers.temperature
        return answers.student_NK.float() / t, answers.teacher_NK.float() / t, t


class FeatureLoss(Loss):
    """A loss between features of the same layers in student and teacher, averaged over the layers.

    Attributes:
        layers: Names of modules (or patterns such as ``"layer?.*.bn2"``) whose outputs are compared;
            ``"blocks"`` compares those of all blocks (`penjing.recover.blocks`), aligned in every dimension;
            empty compares what goes into the last linear layer.

    Class attributes:
        aligned: The loss compares channel by channel, so the teacher's features are cut to the kept channels.
        in_float32: The features come as float32 rather than in the format they were computed in.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    aligned: ClassVar[bool] = True
    in_float32: ClassVar[bool] = True

    layers: tuple[str, ...] | Literal["blocks"] = ()

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one layer; both features are ``[N, C, …]``."""

    def __call__(self, answers: Answers) -> Tensor:
        """The mean of `compare` over the layers."""
        parts = []
        for name, feature in answers.student_features.items():
            theirs = answers.teacher_features[name]
            if self.aligned and feature.shape != theirs.shape:
                raise RecoverError(
                    f"features of {list(feature.shape)} and {list(theirs.shape)} are compared",
                    layer=name,
                    remedy="Pass the plan the student was pruned with, name other layers, or 'blocks'",
                )
            if self.in_float32:
                feature, theirs = feature.float(), theirs.float()
            parts.append(self.compare(feature, theirs))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total / len(parts)


loss: Registry[Loss] = Registry("loss")
make_loss = loss.make
loss_names = loss.names
