"""What pruning gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from penjing.brief import Brief, InShort
from penjing.graph import Coupling, Frozen, Graph, Group
from penjing.prune.cost import Cost
from penjing.prune.plan import Plan
from penjing.prune.ranges import Positions


@dataclass(frozen=True, eq=False, repr=False)
class PruneResult(InShort):
    """A pruned model, and how it came about.

    Attributes:
        model: The smaller model, a new ``nn.Module``.
        plan: With the original weights it gives this model again (before any reconstruction).
        frozen: What could not be pruned, with reasons.
        in_place: True if ``model`` is of the user's own class, False if it is the traced graph.
        reason: Why not in place, or "".
        evened: Which groups keep other numbers of slots than their scores and the ratio or budget alone give,
            so that the user's class serves, and what it would not have served; or "".
        groups: What could be pruned.
        before: Exact counts of the original: ``params`` and ``macs`` (of the example inputs).
        after: The same of ``model``.
        reconstruction: What `penjing.prune.reconstruct` reported, or None.
        sensitivity: The `penjing.search.Sensitivity` that chose the widths, or None.
        latency: Where latency was bounded, the limit and the whole files measured on the way, or None.
        depths: With ``branches="auto"``, the refitted output error on held-back samples by the number of
            branches taken out; else None.
    """

    model: nn.Module
    plan: Plan
    frozen: tuple[Frozen, ...]
    in_place: bool
    reason: str
    groups: tuple[Group, ...]
    before: Mapping[str, int]
    after: Mapping[str, int]
    reconstruction: Any = None
    sensitivity: Any = None
    latency: Mapping[str, Any] | None = None
    depths: Mapping[int, float] | None = None
    evened: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without weights."""
        kept = {key: len(edit.kept) for key, edit in self.plan.groups.items()}
        return {
            "in_place": self.in_place,
            "reason": self.reason,
            "evened": self.evened,
            "before": dict(self.before),
            "after": dict(self.after),
            "removed_ratio": {
                name: 1 - self.after[name] / n if n else 0.0 for name, n in self.before.items()
            },
            "groups": [
                {"id": g.id, "kind": g.kind, "size": g.size, "kept": kept.get(g.id, g.size)}
                for g in self.groups
            ],
            "frozen": [f.to_dict() for f in self.frozen],
            "plan": self.plan.to_dict(),
            "reconstruction": self.reconstruction.to_dict() if self.reconstruction is not None else None,
            "sensitivity": self.sensitivity.to_dict() if self.sensitivity is not None else None,
            "latency": self.latency,
            "depths": None if self.depths is None else dict(self.depths),
        }

    def in_short(self) -> Brief:
        """Counts before and after; what every pruned group keeps."""
        from penjing.report.text import count, times

        counts = (
            f"{count(n)} → {count(self.after[name])} {name} ({times(n, self.after[name])})"
            for name, n in self.before.items()
        )
        served = "" if self.in_place else f"; the traced graph serves it, because {self.reason}"
        served += f"; {self.evened}" if self.evened else ""
        table = self.plan.in_short()
        return Brief(f"{', '.join(counts)}{served}", table.headers, table.rows)


def summarise(
    model: nn.Module,
    plan: Plan,
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[int, Positions],
    *,
    in_place: bool,
) -> PruneResult:
    """Put the counts beside the pruned model."""
    cost = Cost(graph, coupling)
    return PruneResult(
        model=model,
        plan=plan,
        frozen=coupling.frozen,
        in_place=in_place,
        reason="" if in_place else plan.reason,
        groups=coupling.groups,
        before=cost({}),
        after=cost(kept),
    )
