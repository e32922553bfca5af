"""What kept slots cost, in every quantity that a budget bounds; latency as the target runtime has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any

import numpy as np
from torch import nn

from penjing.events import Event, Listener, silent
from penjing.graph import Coupling, Graph
from penjing.measure.latency_lookup import OpTimings
from penjing.prune.allocate import Kept, queue
from penjing.prune.budget import Budget, Precision
from penjing.prune.cost import Cost
from penjing.prune.remove import prune_slots
from penjing.prune.slots import by_leaf
from penjing.search.latency_model import Check, LatencyModel, whole_cache
from penjing.search.whole import WholeTimer, require

Choose = Callable[["Meter", Kept | None], Kept]
"""Chooses slots that cost, by the meter, what the budget allows; near an earlier choice if there is one."""
_RATIOS = ((0.0, 0.0), (0.4, 0.4), (0.75, 0.75), (0.0, 0.75))
"""Ratios of the groups, in turns, in the whole files that the latency model is fitted to."""
_OVER, _UNDER = 0.02, 0.04  # how far the measured file may miss the target, relative
_FILES = 7  # whole files measured on the way to a latency, at most
_STEEPEST = 16.0


@dataclass
class Meter:
    """Counts and predicts. Calling it with kept slots by group id gives each bounded quantity by name.

    Attributes:
        model: The original network.
        example_inputs: As it is called.
        graph: Its trace.
        coupling: Its groups.
        budget: What is bounded, and how latency is measured.
        round_to: Widths that choices have are multiples of this; the latency model is fitted to such.
        listen: Hears what is being timed.
    """

    model: nn.Module
    example_inputs: Any
    graph: Graph
    coupling: Coupling
    budget: Budget
    round_to: int = 1
    listen: Listener = silent
    _original: dict[str, float] = field(default_factory=dict)
    _aim: float | None = None

    def __post_init__(self) -> None:
        if self.budget.latency is not None:
            require(self.budget.runtime)  # before sensitivity is measured

    def __call__(self, kept: Mapping[str, Any]) -> dict[str, float]:
        """Parameters, MACs, bytes, seconds: those that the budget bounds."""
        leaves = by_leaf(self.coupling, kept)
        return {name: self._measure(name, leaves) for name in self.budget.bounds}

    @property
    def precision(self) -> Precision:
        """Of the files whose latency is bounded."""
        return self.budget.precision or "fp32"

    @property
    def original(self) -> dict[str, float]:
        """The same of the original; its latency is measured, not predicted."""
        if not self._original:
            self._original = {
                name: self._measure(name, {}) for name in self.budget.bounds if name != "latency"
            }
            if self.budget.latency is not None:
                self._original |= {"latency": self.latency.original}
        return self._original

    @property
    def limits(self) -> dict[str, float]:
        """The budget's bounds as absolute amounts."""
        found = self.budget.limits(self.original)
        return found if self._aim is None else {**found, "latency": self._aim}

    @property
    def absolute(self) -> Budget:
        """The budget with its bounds as absolute amounts."""
        return self.budget.model_copy(update=self.limits)

    @cached_property
    def latency(self) -> LatencyModel:
        """The fitted latency model."""
        budget = self.budget
        self.listen(Event("measure", "note", message=f"latency model for {budget.runtime}"))
        timer = WholeTimer(
            self.model,
            self.example_inputs,
            batch=budget.batch,
            threads=budget.threads,
            runtime=budget.runtime,
            precision=self.precision,
        )
        made = LatencyModel(
            self.graph,
            self.coupling,
            lambda choices: timer({name: self._pruned(kept) for name, kept in choices.items()}),
            batch=budget.batch,
            timings=OpTimings(threads=budget.threads, listen=self.listen),
            cache=whole_cache(budget.runtime, budget.threads, self.precision),
            listen=self.listen,
        )
        made.fit({_named(ratios): self._ladder(ratios) for ratios in _RATIOS})
        return made

    def _ladder(self, ratios: Sequence[float]) -> Mapping[int, Any]:
        """Slots kept where the groups in turn lose these shares, at widths that a choice may have."""
        kept: dict[str, Any] = {}
        for group, ratio in zip(self.coupling.groups, cycle(ratios), strict=False):
            line = queue(group, np.zeros(group.size), self.round_to)
            kept[group.id] = line.kept(group.size, line.within(ratio * group.size))
        return by_leaf(self.coupling, kept)

    def prefetch(self, choices: Iterable[Mapping[str, Any]]) -> None:
        """Time what these choices need, in turns, where latency is bounded."""
        if self.budget.latency is not None:
            self.latency.prefetch(by_leaf(self.coupling, kept) for kept in choices)

    def meet(self, choose: Choose) -> Kept:
        """Choose slots, measure the whole file, anchor the latency model there, and choose again until the
        file is where the budget wants it (2% over to 4% under).

        The next choice starts from the best so far; how far it goes is set by how steeply the last move from
        there changed the file (a secant in logarithms).

        Args:
            choose: Chooses slots that cost, by this meter, what the budget allows.

        Returns:
            The choice whose file came closest from below (or, if none was below, closest).
        """
        if self.budget.latency is None:
            return choose(self, None)
        limit = self.limits["latency"]
        tried: list[tuple[float, Kept]] = []
        seen: list[tuple[int, ...]] = []
        steep = 1.0  # change of the file's logarithm for a change of the prediction's
        try:
            while len(tried) < _FILES:
                start = min(tried, key=_preferred) if tried else None
                if start is not None:  # the model agrees with the file that the next choice starts from
                    self.latency.anchor(by_leaf(self.coupling, start[1]))
                    self._aim = limit * (1 + start[0]) ** (1 - 1 / steep) if start[0] < 0 else limit
                kept = choose(self, None if start is None else start[1])
                counts = _sizes(kept)
                if counts in seen:
                    stuck = start is None or start[0] > _OVER or counts == _sizes(start[1])
                    if stuck or steep >= _STEEPEST:
                        break
                    steep *= 2
                    continue
                seen.append(counts)
                check = self._check(len(tried) + 1, kept, limit)
                miss = check.seconds / limit - 1
                tried.append((miss, kept))
                if -_UNDER <= miss <= _OVER:
                    break
                if start is not None and start[0] < 0 and check.predicted is not None:
                    steep = _steepness(limit * (1 + start[0]), check.predicted, check.seconds)
        finally:
            self._aim = None
        return min(tried, key=_preferred)[1]

    def _check(self, number: int, kept: Kept, limit: float) -> Check:
        """Measure the file of a choice."""
        check = self.latency.check(f"choice {number}", by_leaf(self.coupling, kept))
        predicted = check.predicted or 0.0
        self.listen(
            Event(
                "measure",
                "note",
                metrics={"seconds": check.seconds, "predicted": predicted, "limit": limit},
                message=f"{1e3 * check.seconds:.4g} ms measured, {1e3 * predicted:.4g} predicted, "
                f"{1e3 * limit:.4g} allowed",
            )
        )
        return check

    def report(self) -> dict[str, Any] | None:
        """The limit of a bounded latency, how it is measured, and every whole file beside its prediction."""
        if self.budget.latency is None:
            return None
        return {
            "limit": self.limits["latency"],
            "original": self.original["latency"],
            "batch": self.budget.batch,
            "threads": self.budget.threads,
            "runtime": self.budget.runtime,
            "precision": self.precision,
            "checks": [check.to_dict() for check in self.latency.checks],
        }

    def _measure(self, name: str, leaves: Mapping[int, Any]) -> float:
        if name == "latency":
            return self.latency.seconds(leaves)
        cost = Cost(self.graph, self.coupling)
        return int(getattr(cost, name)(leaves))

    def _pruned(self, leaves: Mapping[int, Any]) -> nn.Module:
        kept = {group.id: leaves[group.leaf] for group in self.coupling.groups if group.leaf in leaves}
        if not kept:
            return self.model
        return prune_slots(self.model, self.example_inputs, self.graph, self.coupling, kept).model


def _named(ratios: Sequence[float]) -> str:
    return " and ".join(f"{ratio:.0%}" for ratio in dict.fromkeys(ratios)) + " removed"


def _preferred(tried: tuple[float, Kept]) -> tuple[bool, float]:
    """Order of choices: not over the target first, then the closest."""
    return tried[0] > _OVER, abs(tried[0])


def _steepness(start: float, predicted: float, measured: float) -> float:
    """How many times further than predicted the file moved, in logarithms, within [1, 16]."""
    if predicted <= start * 1.001 or measured <= start:
        return 1.0
    return float(np.clip(np.log(measured / start) / np.log(predicted / start), 1.0, _STEEPEST))


def _sizes(kept: Kept) -> tuple[int, ...]:
    return tuple(len(slots) for slots in kept.values())
