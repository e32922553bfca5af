"""What a regularizer is, and the registry that finds it by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from penjing.config import Config
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

_REGULARIZERS: dict[str, type[Regularizer]] = {}
_R = TypeVar("_R", bound=type[Regularizer])


def regularizer(name: str) -> Callable[[_R], _R]:
    """Class decorator: make a regularizer known under ``name``."""

    def add(cls: _R) -> _R:
        _REGULARIZERS[name] = cls
        return cls

    return add


def make_regularizer(name: str, options: Mapping[str, Any] | None = None) -> Regularizer:
    """The regularizer of that name with these options.

    Raises:
        ValueError: unknown name (with the nearest known one) or options it does not have.
    """
    if name not in _REGULARIZERS:
        near = difflib.get_close_matches(name, _REGULARIZERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(regularizer_names())}"
        raise ValueError(f"unknown regularizer {name!r}; {hint}")
    return _REGULARIZERS[name].model_validate(dict(options or {}))


def regularizer_names() -> tuple[str, ...]:
    """Names of all regularizers, in alphabetical order."""
    return tuple(sorted(_REGULARIZERS))
