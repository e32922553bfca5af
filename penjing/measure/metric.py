"""Any measure of quality: a function of outputs and targets, or an object of the torchmetrics kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor

from penjing.errors import MeasureError
from penjing.files import from_home
from penjing.measure.predict import as_predict, labelled, names_of
from penjing.user_file import named_function


@runtime_checkable
class StatefulMetric(Protocol):
    """What torchmetrics objects offer: batches go in by `update`, the value comes out of `compute`."""

    def update(self, preds: Any, target: Any) -> Any:
        """Take in one batch."""

    def compute(self) -> Any:
        """The value over all batches since `reset`."""

    def reset(self) -> Any:
        """Forget all batches."""


Metric = Callable[[Tensor, Tensor], Any] | StatefulMetric
"""Higher is better. A function gets all outputs ``(N, …)`` (of several the first) and all targets at once."""


_ROUNDING = 1e-12
"""Differences of shares are off by less: 0.93 - 0.92 gives 0.010000000000000009."""


def is_allowed(lost: float, most: float) -> bool:
    """Whether a loss of quality is no larger than the largest one allowed, to rounding."""
    return lost <= most + _ROUNDING


def score(metric: Metric, model: Any, loader: Iterable[Any]) -> float:
    """The metric's value alone; see `scored`."""
    return scored(metric, model, loader)[0]


def scored(metric: Metric, model: Any, loader: Iterable[Any]) -> tuple[float, int]:
    """The metric's value for a module, a session or an exported file on batches with targets, and the number
    of samples.

    Raises:
        MeasureError: without samples, or where the metric fails or gives no finite number.
    """
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    with as_predict(model) as predict:
        for inputs, target in labelled(loader, names_of(model)):
            outputs.append(torch.as_tensor(predict(inputs).copy()))
            targets.append(torch.as_tensor(target))
    if not outputs:
        raise MeasureError("there are no samples to score", remedy="Give at least one batch")
    return value_of(metric, outputs, targets), sum(len(y) for y in targets)


def value_of(metric: Metric, outputs: list[Tensor], targets: list[Tensor]) -> float:
    """The metric's value on batches of outputs and targets.

    Raises:
        MeasureError: where the metric fails or gives no finite number.
    """
    try:
        if isinstance(metric, StatefulMetric):
            metric.reset()
            for z, y in zip(outputs, targets, strict=True):
                metric.update(z, y)
            found = metric.compute()
        else:
            found = metric(torch.cat(outputs), torch.cat(targets))
        value = float(found)
    except Exception as error:  # the metric is the user's: anything may come out of it
        raise MeasureError(
            f"the metric failed ({type(error).__name__}: {error})",
            layer=name_of(metric),
            remedy="It gets outputs (N, …) and targets, and returns one number, higher is better",
        ) from error
    if not math.isfinite(value):
        raise MeasureError(
            f"the metric gives {value}", layer=name_of(metric), remedy="It has to be a finite number"
        )
    return value


def on_arrays(metric: Metric) -> Callable[[NDArray[Any], NDArray[Any]], float]:
    """The metric as a function of NumPy arrays."""
    return lambda outputs, targets: value_of(metric, [torch.as_tensor(outputs)], [torch.as_tensor(targets)])


def load_metric(spec: str) -> Metric:
    """The metric of ``"file.py:function"``.

    Raises:
        MeasureError: for another text, no such file or function, or a file whose code fails.
    """
    file, _, name = from_home(spec).rpartition(":")
    if not file.endswith(".py") or not name:
        raise MeasureError(f"{spec!r} is no metric", remedy="Write file.py:function, of outputs and targets")
    return named_function(Path(file), name, MeasureError)


def name_of(metric: Metric) -> str:
    """What the metric is called in the table."""
    return str(getattr(metric, "__name__", type(metric).__name__))
