"""What kept slots cost, in every quantity that a budget bounds; latency as the target runtime has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from penjing.events import Event, Listener, silent
from penjing.graph import Coupling, Graph
from penjing.measure.latency_lookup import OpTimings
from penjing.prune.allocate import Kept, allocate
from penjing.prune.api import prune_slots
from penjing.prune.budget import Budget
from penjing.prune.cost import Cost
from penjing.prune.slots import by_leaf
from penjing.search.latency_model import LatencyModel, whole_cache
from penjing.search.whole import WholeTimer

Choose = Callable[["Meter", Kept | None], Kept]
"""Chooses slots that cost, by the meter, what the budget allows; near an earlier choice if there is one."""
_RATIOS = (0.0, 0.3, 0.6, 0.85)  # of the whole files that the latency model is fitted to
_OVER, _UNDER = 0.02, 0.04  # how far the measured file may miss the target, relative
_ROUNDS = 5


@dataclass
class Meter:
    """Counts and predicts. Calling it with kept slots by group id gives each bounded quantity by name.

    Attributes:
        model: The original network.
        example_inputs: As it is called.
        graph: Its trace.
        coupling: Its groups.
        budget: What is bounded, and how latency is measured.
        listen: Hears what is being timed.
    """

    model: nn.Module
    example_inputs: Any
    graph: Graph
    coupling: Coupling
    budget: Budget
    listen: Listener = silent
    _original: dict[str, float] = field(default_factory=dict)

    def __call__(self, kept: Mapping[str, Any]) -> dict[str, float]:
        """Parameters, MACs, bytes, seconds: those that the budget bounds."""
        leaves = by_leaf(self.coupling, kept)
        return {name: self._measure(name, leaves) for name in self.budget.bounds}

    @property
    def original(self) -> dict[str, float]:
        """The same of the original; its latency is measured, not predicted."""
        if not self._original:
            self._original = {
                name: self._measure(name, {}) for name in self.budget.bounds if name != "latency"
            }
            if self.budget.latency is not None:
                self._original |= {"latency": self.latency.measure({"original": {}})["original"]}
        return self._original

    @property
    def limits(self) -> dict[str, float]:
        """The budget's bounds as absolute amounts."""
        return self.budget.limits(self.original)

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
        )
        made = LatencyModel(
            self.graph,
            self.coupling,
            lambda choices: timer({name: self._pruned(kept) for name, kept in choices.items()}),
            batch=budget.batch,
            timings=OpTimings(threads=budget.threads, listen=self.listen),
            cache=whole_cache(budget.runtime, budget.threads),
            listen=self.listen,
        )
        flat = {group.id: np.zeros(group.size) for group in self.coupling.groups}
        choices = {
            f"uniform, {ratio:.0%} removed": by_leaf(
                self.coupling, allocate(self.coupling.groups, flat, ratio=ratio)
            )
            for ratio in _RATIOS
        }
        made.fit(choices)
        return made

    def prefetch(self, choices: Iterable[Mapping[str, Any]]) -> None:
        """Time what these choices need, in turns, where latency is bounded."""
        if self.budget.latency is not None:
            self.latency.prefetch(by_leaf(self.coupling, kept) for kept in choices)

    def meet(self, choose: Choose) -> Kept:
        """Choose slots, measure the whole file, anchor the latency model there, and choose again until the
        file is where the budget wants it (2% over to 4% under), or five times.

        Args:
            choose: Chooses slots that cost, by this meter, what the budget allows.

        Returns:
            The choice whose file came closest from below (or, if none was below, closest).
        """
        if self.budget.latency is None:
            return choose(self, None)
        limit = self.limits["latency"]
        tried: list[tuple[float, Kept]] = []
        seen = set()
        for turn in range(_ROUNDS):
            if tried:  # the model agrees with the file that the next choice starts from
                self.latency.anchor(by_leaf(self.coupling, min(tried, key=_preferred)[1]))
            kept = choose(self, min(tried, key=_preferred)[1] if tried else None)
            counts = tuple(len(slots) for slots in kept.values())
            if counts in seen:
                break
            seen.add(counts)
            check = self.latency.check(f"choice {turn + 1}", by_leaf(self.coupling, kept))
            miss = check.seconds / limit - 1
            tried.append((miss, kept))
            self.listen(
                Event(
                    "measure",
                    "note",
                    metrics={"seconds": check.seconds, "predicted": check.predicted or 0.0, "limit": limit},
                    message=f"{1e3 * check.seconds:.4g} ms measured, "
                    f"{1e3 * (check.predicted or 0):.4g} predicted, {1e3 * limit:.4g} allowed",
                )
            )
            if -_UNDER <= miss <= _OVER:
                break
        return min(tried, key=_preferred)[1]

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


def _preferred(tried: tuple[float, Kept]) -> tuple[bool, float]:
    """Order of choices: not over the target first, then the closest."""
    return tried[0] > _OVER, abs(tried[0])
