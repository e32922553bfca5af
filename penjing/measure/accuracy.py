"""Accuracy, never without its number of samples and its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penjing.errors import MeasureError
from penjing.measure.predict import are_classes, as_predict, labelled, names_of

_LITTLE = 0.2
"""Share of what lies between chance and all right, below which few samples may be at chance."""


@dataclass(frozen=True)
class Accuracy:
    """The share of samples whose highest output is at the label.

    Attributes:
        value: Correct / n.
        n: Samples.
        low: Lower end of the 95% Wilson interval.
        high: Upper end.
        per_class: Accuracy of each class; NaN for a class without samples (None in `to_dict`).
        confusion: int64 ``(classes, classes)``: rows are labels, columns predictions.
    """

    value: float
    n: int
    low: float
    high: float
    per_class: tuple[float, ...] = ()
    confusion: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.value:.2%} ({self.low:.2%} to {self.high:.2%}, n={self.n})"

    def confused(self, top: int = 10) -> list[tuple[int, int, int]]:
        """The most frequent mistakes as (label, prediction, count)."""
        if self.confusion is None:
            return []
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:top]
        pairs = [divmod(int(at), len(wrong)) for at in order]
        return [(label, guess, int(wrong[label, guess])) for label, guess in pairs if wrong[label, guess]]

    @property
    def by_chance(self) -> float:
        """What the same predictions would be worth on labels in another order: the agreement that the shares
        of labels and predictions alone give (Cohen 1960); NaN without the confusion matrix.
        """
        if self.confusion is None or not self.n:
            return math.nan
        labels, guesses = (self.confusion.sum(axis=axis) / self.n for axis in (1, 0))
        return float(labels @ guesses)

    @property
    def is_chance(self) -> bool:
        """Whether the predictions say nothing of the labels, as far as these samples tell: the interval
        reaches down to `by_chance`, and less than a fifth of what is above it is won. Labels that are all
        the same tell nothing.
        """
        if self.confusion is None or np.count_nonzero(self.confusion.sum(axis=1)) < 2:
            return False
        chance = self.by_chance
        return self.low <= chance and self.value - chance < _LITTLE * (1 - chance)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without the confusion matrix."""
        return {
            "value": self.value,
            "n": self.n,
            "low": self.low,
            "high": self.high,
            "per_class": [None if math.isnan(share) else share for share in self.per_class],
        }


def accuracy(predict: Any, loader: Iterable[Any], *, max_samples: int | None = None) -> Accuracy:
    """Measure top-1 accuracy.

    Args:
        predict: An ``nn.Module`` (run in eval mode), an ONNX Runtime session, an exported file's runner, or a
            function from a batch's inputs to logits ``(N, classes)``.
        loader: Batches of (inputs, int64 labels ``(N,)``).
        max_samples: Stop after so many samples.

    Raises:
        MeasureError: no samples, no labels, labels outside the outputs, or outputs that are not finite.
    """
    confusion = np.zeros((0, 0), dtype=np.int64)
    seen = 0
    with as_predict(predict) as ask:
        for inputs, targets in labelled(loader, names_of(predict)):
            if not are_classes(targets):
                raise MeasureError(
                    f"labels are {targets.dtype} of shape {targets.shape}",
                    remedy="Give int64 labels of shape (N,), or say by metric= what a network that does not "
                    "classify is judged by",
                )
            labels = targets.astype(np.int64)
            logits = ask(inputs)
            if max_samples is not None:
                logits, labels = logits[: max_samples - seen], labels[: max_samples - seen]
            _check(logits, labels)
            if not len(confusion):
                confusion = np.zeros((logits.shape[1], logits.shape[1]), dtype=np.int64)
            np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
            seen += len(labels)
            if max_samples is not None and seen >= max_samples:
                break
    if not seen:
        raise MeasureError(
            "there are no samples to measure accuracy on", remedy="Give a loader with labelled data"
        )
    return _from_confusion(confusion)


def _from_confusion(confusion: NDArray[np.int64]) -> Accuracy:
    n, correct = int(confusion.sum()), int(np.trace(confusion))
    low, high = wilson(correct, n)
    totals = confusion.sum(axis=1)
    per_class = np.divide(
        np.diag(confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0, casting="unsafe"
    )
    return Accuracy(correct / n, n, low, high, tuple(float(share) for share in per_class), confusion)


def _check(logits: NDArray[Any], labels: NDArray[np.int64]) -> None:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise MeasureError(
            f"outputs have shape {logits.shape} for {len(labels)} labels",
            remedy="Give logits of shape (N, classes)",
        )
    if not np.isfinite(logits).all():
        raise MeasureError("outputs are not finite", remedy="Train or load sound weights before measuring")
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise MeasureError(
            f"labels span {labels.min()}…{labels.max()} and there are {logits.shape[1]} outputs",
            remedy="Give labels that index the outputs",
        )


def wilson(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); 95% by default. It stays inside [0, 1]."""
    if n <= 0:
        raise MeasureError("an interval needs at least one sample", remedy="Measure on some data")
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n correct the ends are exact, whatever the rounding.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high
