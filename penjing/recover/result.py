"""What a run of training gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import nn

from penjing.brief import Brief, InShort
from penjing.recover.quality import quality, quality_name, shown


class StopReason(Enum):
    """Why training ended; the value says it for people."""

    EPOCHS = "all epochs are done"
    MAX_STEPS = "max_steps was reached; raise it to train longer"
    MAX_SECONDS = "the time given (max_seconds) was used up"
    PATIENCE = "validation stopped getting better; keep='best' gives the best weights, patience waits longer"


@dataclass(frozen=True, repr=False)
class RecoverResult(InShort):
    """A trained model and how it came about.

    Attributes:
        model: The trained copy, in eval mode, on the device the given model was on.
        history: One entry an epoch, the same in every run of the same seed: ``epoch`` (from 1), ``steps``,
            ``lr``, ``train_loss``, ``train_accuracy`` (labelled data; on the batches as trained on),
            ``loss_<term>`` for each term, ``val_accuracy``, ``val_loss`` and ``val_n`` where validated (with
            a metric ``val_metric``, for a network that does not classify ``val_fidelity``: R² against the
            original's outputs).
        timing: One entry an epoch, of this machine: ``epoch``, ``seconds``, ``samples_per_second``.
        start: The same of the weights the run began with;
            ``recalibrated`` is 1.0 where batch-norm statistics were measured anew. Empty without validation
            and in `train`.
        kept: Which weights came back: ``"last"``, ``"best"`` or ``"start"`` (validation found none better).
        best_epoch: The epoch (from 1) of the best validation accuracy; None without validation.
        steps: Optimizer steps taken.
        seconds: Wall-clock seconds in all, over all sessions of a resumed run.
        stopped: Why it ended.
        precision: The number format used, ``"fp32"`` or ``"bf16"``.
        config: The options, as plain data.
    """

    model: nn.Module
    history: list[dict[str, float]]
    timing: list[dict[str, float]]
    best_epoch: int | None
    steps: int
    seconds: float
    stopped: StopReason
    precision: str
    config: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, float] = field(default_factory=dict)
    kept: str = "last"

    def in_short(self) -> Brief:
        """How it ended; losses and accuracies of the start and every epoch."""
        from penjing.report.text import duration, percent

        def accuracy(entry: Mapping[str, float], name: str) -> str:
            return percent(entry[name]) if name in entry else "–"

        def validation(entry: Mapping[str, float]) -> str:
            if (found := quality(entry)) is None:
                return "–"
            name = quality_name(entry)
            return shown(entry, found) + ("" if name == "accuracy" else f" {name}")

        entries = [{"epoch": 0, **self.start}] if self.start else []
        rows = [
            (
                f"{entry['epoch']:.0f}" if entry["epoch"] else "start",
                f"{entry['train_loss']:.4g}" if "train_loss" in entry else "–",
                accuracy(entry, "train_accuracy"),
                validation(entry),
            )
            for entry in (*entries, *self.history)
        ]
        best = "" if self.best_epoch is None else f", best epoch {self.best_epoch}"
        title = f"{self.steps:,} steps in {duration(self.seconds)}, {self.precision}; kept: {self.kept}{best}"
        return Brief(title, ("epoch", "train loss", "train", "validation"), rows[:1] + rows[1:][-10:])

    @property
    def reached(self) -> Mapping[str, float]:
        """The entry of ``history``, or ``start``, whose weights came back; empty where there is none."""
        if self.kept == "start":
            return self.start
        at = self.best_epoch if self.kept == "best" else None
        return self.history[-1 if at is None else at - 1] if self.history else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; what depends on the clock is under ``"timing"``."""
        return {
            "start": dict(self.start),
            "history": self.history,
            "kept": self.kept,
            "best_epoch": self.best_epoch,
            "steps": self.steps,
            "stopped": self.stopped.name.lower(),
            "stopped_because": self.stopped.value,
            "precision": self.precision,
            "config": dict(self.config),
            "timing": {"seconds": self.seconds, "epochs": self.timing},
        }
