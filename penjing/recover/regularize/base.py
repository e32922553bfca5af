"""What a regularizer is, and the registry that finds it by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from penjing.config import Config
from penjing.recover.registry import Registry
from penjing.recover.regularize.slots import SlotGroup, slot_groups

Params = Mapping[str, Tensor]


class Regularizer(Config):
    """One way to make a network sparse while it trains: its options are its fields.

    The loop calls `begin` once, `gradient_` after every backward pass, `step_` after every optimizer step and
    `epoch_` after every epoch. All of them are functions of the run's start, of the weights and of the share
    of the run that is done, so a resumed run needs no state of theirs.

    Class attributes:
        aims_elsewhere: The network is meant to change although its accuracy may fall for now.
    """

    aims_elsewhere: ClassVar[bool] = True

    def begin(self, model: nn.Module, inputs: Any, start: Params) -> Any:
        """What the other calls are given back as ``state``.

        Args:
            model: The network in training.
            inputs: The inputs of a few samples, to trace it with.
            start: Parameters as they were when the run began.
        """
        return None

    def gradient_(self, params: Params, state: Any, done: float) -> None:
        """Add to the gradients. ``done`` in [0, 1] is the share of the run that is done."""

    def step_(self, params: Params, state: Any, lr: float) -> None:
        """Change the weights after an optimizer step at learning rate ``lr``."""

    def epoch_(self, params: Params, state: Any) -> None:
        """Change the weights at the end of an epoch."""


class GroupRegularizer(Regularizer):
    """A regularizer of the slots of coupled groups: all that must be removed together.

    Attributes:
        ignore: Glob patterns on parameter names; the axes of matching parameters are left alone.
    """

    ignore: tuple[str, ...] = ()

    def begin(self, model: nn.Module, inputs: Any, start: Params) -> Any:
        """The groups."""
        return slot_groups(model, inputs, self.ignore)


State = list[SlotGroup]

regularizer: Registry[Regularizer] = Registry("regularizer")
make_regularizer = regularizer.make
regularizer_names = regularizer.names
