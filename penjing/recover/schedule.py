"""Learning rate as a function of the share of the run that is done."""

from __future__ import annotations

import math
from collections.abc import Callable

from penjing.recover.config import RecoverConfig


def _linear(start: float, end: float, t: float) -> float:
    return start + (end - start) * t


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * t))


def _flat(start: float, end: float, t: float) -> float:
    return start


_Shape = Callable[[float, float, float], float]

# name: (shape of the warmup, shape of the decay, default share of the warmup)
_SHAPES: dict[str, tuple[_Shape, _Shape, float]] = {
    "onecycle": (_cosine, _cosine, 0.25),
    "cosine": (_linear, _cosine, 0.0),
    "linear": (_linear, _linear, 0.0),
    "constant": (_linear, _flat, 0.0),
}


def learning_rate(config: RecoverConfig, progress: float) -> float:
    """The learning rate when the share ``progress`` in [0, 1] of the run is done.

    It rises from ``lr_start · lr`` to ``lr`` during the warmup and then follows the schedule to ``lr_end ·
    lr`` (``"constant"`` stays at ``lr``). ``"onecycle"`` is the schedule of Smith & Topin 2017 with cosine
    arms.
    """
    rise, fall, default = _SHAPES[config.schedule]
    warmup = default if config.warmup is None else config.warmup
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return config.lr * rise(config.lr_start, 1.0, progress / warmup)
    return config.lr * fall(1.0, config.lr_end, (progress - warmup) / (1.0 - warmup))
