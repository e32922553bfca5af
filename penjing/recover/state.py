"""Where a run of training stands: everything but the tensors, as plain data."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor

from penjing.recover.processes import Processes
from penjing.recover.result import StopReason


@dataclass
class Progress:
    """Counters and records of a run; goes into the checkpoint and comes back from it.

    Attributes:
        epoch: Epochs finished.
        steps: Optimizer steps taken.
        seconds: Wall-clock seconds of earlier sessions.
        history: See `RecoverResult`.
        timing: See `RecoverResult`.
        best_quality: Best `penjing.recover.quality.quality` in validation; 0 before the first.
        best_epoch: Its epoch, from 1.
        waiting: Validations since the best one.
        start: Validation of the weights the run began with, as in `RecoverResult`.
        stopped: Why the run has ended; None while it goes on.
        precision: The number format chosen when the run began.
    """

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)
    best_quality: float = 0.0
    best_epoch: int | None = None
    waiting: int = 0
    start: dict[str, float] = field(default_factory=dict)
    stopped: StopReason | None = None
    precision: str = ""
    began: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Seconds so far, earlier sessions included."""
        return self.seconds + time.perf_counter() - self.began

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON that `from_dict` goes on from."""
        values = asdict(self)
        del values["began"]
        values["seconds"] = self.elapsed()
        values["stopped"] = None if self.stopped is None else self.stopped.name
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The saved progress, its clock going on from now."""
        stopped = values["stopped"]
        return cls(**{**values, "stopped": None if stopped is None else StopReason[stopped]})


class EpochSums:
    """Sums over the samples of an epoch."""

    def __init__(self) -> None:
        self.samples = 0.0
        self.loss = 0.0
        self.right = 0.0
        self.labelled = 0.0
        self.parts: dict[str, float] = {}

    def add(self, samples: int, loss: float, parts: dict[str, float], right: Tensor | None) -> None:
        """Add a batch: its mean loss, each term's mean, and whether the answer to each label that counts was
        right (None: no labels).
        """
        self.samples += samples
        self.loss += loss * samples
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value * samples
        if right is not None:
            self.right += float(right.sum())
            self.labelled += len(right)

    def means(self) -> dict[str, float]:
        """Means over the samples, by the names of `RecoverResult.history`."""
        if not self.samples:
            return {}
        found = {"train_loss": self.loss / self.samples}
        if self.labelled:
            found["train_accuracy"] = self.right / self.labelled
        if len(self.parts) > 1:
            found |= {f"loss_{name}": value / self.samples for name, value in self.parts.items()}
        return found

    def reduced(self, processes: Processes) -> Self:
        """This meter with the sums of all processes."""
        names = list(self.parts)
        values = [self.samples, self.loss, self.right, self.labelled, *(self.parts[name] for name in names)]
        self.samples, self.loss, self.right, self.labelled, *parts = processes.sums(*values)
        self.parts = dict(zip(names, parts, strict=True))
        return self
