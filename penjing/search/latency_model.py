"""Seconds of any pruned version of a network, from a table of operator timings and a few whole files.

A network's latency is modelled as ``a + b · Σ lookup + c · moved``: kernels as they were timed one by one at
exactly the pruned shapes, elements moved by everything else, and a constant. The three coefficients come
from whole exported files of a few widths by non-negative least squares on relative errors (the lookup is that
of NetAdapt, Yang et al. 2018, section 3.3; the fit accounts for fusion and for the runtime's overhead).
Another whole file can be measured at any time to correct the model where it is being used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penjing.events import Event, Listener, silent
from penjing.graph import Coupling, Graph
from penjing.measure.latency import device_name
from penjing.measure.latency_cache import TimingCache
from penjing.measure.latency_lookup import OpTimings
from penjing.prune.budget import Precision
from penjing.prune.cost import Kept
from penjing.search.whole import REFERENCE
from penjing.search.workload import Workload, Workloads

Whole = Callable[[Mapping[str, Kept]], Mapping[str, float]]
"""Measures whole files: kept slots (by leaf id) by name → seconds by name, the original's among them."""


@dataclass(frozen=True)
class Check:
    """One whole file beside its prediction.

    Attributes:
        name: What was measured.
        seconds: Median of the file.
        predicted: What the model said before it saw this file (None for the files it was fitted to).
    """

    name: str
    seconds: float
    predicted: float | None = None

    @property
    def error(self) -> float | None:
        """Relative error of the prediction; positive when the file is slower than predicted."""
        return None if self.predicted is None else self.seconds / self.predicted - 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "predicted": self.predicted,
            "error": self.error,
        }


@dataclass
class LatencyModel:
    """Predicts latency from kept slots.

    Attributes:
        graph: The traced network.
        coupling: Its groups.
        whole: Measures whole files.
        cache: Whole files by content, so that an interrupted run goes on with the same numbers.
        batch: Samples in a call.
        timings: The operator table.
        coefficients: (constant in s, factor of the table, seconds an element moved), after `fit`.
        scale: What `anchor` has multiplied the prediction by.
        checks: Every whole file measured.
        reference: Seconds of the original when it was first timed; other files are stated at that clock. It
            is in fp32, whatever the files are.
    """

    graph: Graph
    coupling: Coupling
    whole: Whole
    cache: TimingCache
    batch: int = 1
    timings: OpTimings = field(default_factory=OpTimings)
    coefficients: tuple[float, float, float] | None = None
    scale: float = 1.0
    checks: list[Check] = field(default_factory=list)
    reference: float | None = None
    listen: Listener = silent

    @cached_property
    def _workloads(self) -> Workloads:
        return Workloads(self.graph, self.coupling, self.batch)

    def work(self, kept: Kept) -> Workload:
        """The operators of one call."""
        return self._workloads(kept)

    def prefetch(self, choices: Iterable[Kept]) -> None:
        """Time what these choices need, all in turns, so that asking for each costs nothing."""
        self.timings.seconds(shape for kept in choices for shape in self.work(kept).ops)

    def features(self, kept: Kept) -> NDArray[np.float64]:
        """(1, sum of the lookups in s, elements moved)."""
        work = self.work(kept)
        seconds = self.timings.seconds(work.ops)
        total = sum(seconds[shape] * number for shape, number in work.ops.items())
        return np.array([1.0, total, float(work.moved)])

    def seconds(self, kept: Kept) -> float:
        """Predicted median seconds of one call."""
        assert self.coefficients is not None, "fit the model first"
        return self.scale * float(self.features(kept) @ np.array(self.coefficients))

    def measure(self, choices: Mapping[str, Kept]) -> dict[str, float]:
        """Seconds of whole files, from the cache where the same work was measured before."""
        keys = {name: self.work(kept).digest for name, kept in choices.items()}
        found = {name: self.cache.get(key) for name, key in keys.items()}
        missing = {name: kept for name, kept in choices.items() if found[name] is None}
        if missing:
            self.listen(Event("measure", "note", message=f"timing {len(missing)} whole files"))
            measured = self._steady(self.whole(missing))
            found |= measured
            self.cache.update({keys[name]: value for name, value in measured.items()})
            self.cache.tell(self.listen)
        return {name: value for name, value in found.items() if value is not None}

    def _steady(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Seconds as if the clock had been that of the first time: the original is timed every time."""
        now = measured[REFERENCE]
        if self.reference is None:
            key = f"{REFERENCE} {self.work({}).digest}"
            self.reference = self.cache.get(key) or now
            self.cache.update({key: self.reference})
        return {n: value * self.reference / now for n, value in measured.items() if n != REFERENCE}

    @property
    def original(self) -> float:
        """Seconds of the original."""
        if self.reference is None:
            self._steady(self.whole({}))
        assert self.reference is not None
        return self.reference

    def fit(self, choices: Mapping[str, Kept]) -> None:
        """Find the coefficients from whole files of these choices."""
        self.prefetch(choices.values())
        measured = self.measure(choices)
        self.checks += [Check(name, seconds) for name, seconds in measured.items()]
        rows = np.stack([self.features(choices[name]) for name in measured])
        self.coefficients = nonnegative_fit(rows, np.array(list(measured.values())))

    def check(self, name: str, kept: Kept) -> Check:
        """Measure one whole file and record how far the prediction was off."""
        check = Check(name, self.measure({name: kept})[name], self.seconds(kept))
        self.checks.append(check)
        return check

    def anchor(self, kept: Kept) -> None:
        """Rescale the model to agree with the measured file of this choice."""
        self.scale *= self.measure({"anchor": kept})["anchor"] / self.seconds(kept)


def whole_cache(runtime: str, threads: int, precision: Precision = "fp32") -> TimingCache:
    """The cache of whole files for one runtime and precision."""
    import onnxruntime
    import torch

    conditions = {
        "device": device_name(),
        "runtime": runtime,
        "threads": threads,
        "what": "whole files, undisturbed",
    }
    if precision != "fp32":
        conditions["precision"] = precision
    versions = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
    return TimingCache(conditions | versions)


def nonnegative_fit(rows: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Non-negative least squares on relative errors, by trying every subset of the three columns.

    Of subsets that fit equally well (to 1e-12) the first in the order lookup, constant, moved is taken.

    Args:
        rows: Features, shape (files, 3).
        seconds: Measured, shape (files,).
    """
    scaled = rows / seconds[:, None]
    best, least = (0.0, float(np.mean(seconds / np.maximum(rows[:, 1], 1e-12))), 0.0), np.inf
    for columns in _subsets((1, 0, 2)):
        found, *_ = np.linalg.lstsq(scaled[:, columns], np.ones(len(rows)), rcond=None)
        if (found < 0).any() or len(columns) > len(rows):
            continue
        error = float(((scaled[:, columns] @ found - 1) ** 2).sum())
        if error < least - 1e-12:
            values = np.zeros(3)
            values[columns] = found
            best, least = (float(values[0]), float(values[1]), float(values[2])), error
    return best


def _subsets(columns: Sequence[int]) -> list[list[int]]:
    return [list(part) for size in range(1, 4) for part in combinations(columns, size)]
