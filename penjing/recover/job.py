"""What a run of the training loop is asked to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from penjing.events import Listener
from penjing.measure.metric import Metric
from penjing.recover.config import RecoverConfig
from penjing.recover.teachers import Teacher


@dataclass(frozen=True)
class Job:
    """The arguments of `train` and `recover`."""

    stage: str
    model: nn.Module
    teachers: tuple[Teacher, ...]
    data: Iterable[Any]
    config: RecoverConfig
    val: Iterable[Any] | None
    plan: Any
    checkpoint: Path | None
    seed: int
    listen: Listener
    metric: Metric | None = None
