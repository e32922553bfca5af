"""Pruning in several rounds, each recovered from the original, with a guard on the accuracy.

Small steps let a network adapt: what is removed later is chosen from weights that do without what went
before already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from penjing.errors import PruneError
from penjing.events import Event, Listener, silent
from penjing.graph import Coupling, Group, couple, trace
from penjing.measure.metric import is_allowed
from penjing.prune.allocate import Scope, allocate
from penjing.prune.checks import checked_patterns
from penjing.prune.criteria import Criterion, Material, make_criterion
from penjing.prune.plan import Plan
from penjing.prune.reconstruct import reconstruct as refit
from penjing.prune.schedule import Kind, schedule
from penjing.prune.serve import Chosen, prune_served
from penjing.prune.worth import weighed_scores
from penjing.recover import RecoverConfig, recover
from penjing.recover.evaluate import share_right


class GradualStop(Enum):
    """Why the rounds ended; the value says it for people."""

    DONE = "every round held"
    GUARD = "the next round lost more accuracy than max_drop allows; the last that held is given back"


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        ratio: Fraction of the slots of the round's own start that went.
        params, macs: What was left.
        val_pruned: Validation accuracy before recovery.
        val_accuracy: Validation accuracy after it.
        held: Whether the guard let it pass.
    """

    ratio: float
    params: int
    macs: int
    val_pruned: float
    val_accuracy: float
    held: bool


@dataclass(frozen=True)
class GradualResult:
    """The smallest network that held, and how it was reached.

    Attributes:
        model: The network; a copy of the original where no round held.
        plan: From the original to it; None where no round held.
        rounds: Every round, also the one that did not hold.
        dense_accuracy: Validation accuracy of the original.
        stopped: Why it ended.
    """

    model: nn.Module
    plan: Plan | None
    rounds: tuple[Round, ...]
    dense_accuracy: float
    stopped: GradualStop

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without weights."""
        return {
            "rounds": [vars(one) for one in self.rounds],
            "dense_accuracy": self.dense_accuracy,
            "stopped": self.stopped.name.lower(),
            "stopped_because": self.stopped.value,
            "plan": None if self.plan is None else self.plan.to_dict(),
        }


def prune_gradually(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    val: Iterable[Any],
    ratio: float = 0.5,
    *,
    rounds: int = 3,
    kind: Kind = "agp",
    max_drop: float | None = None,
    criterion: str | Mapping[str, Any] | Criterion = "magnitude",
    scope: Scope = "local",
    ignore: str | Sequence[str] = (),
    reconstruct: bool = False,
    config: RecoverConfig | Mapping[str, Any] | None = None,
    last: RecoverConfig | Mapping[str, Any] | Literal["same"] = "same",
    seed: int = 0,
    listen: Listener = silent,
) -> GradualResult:
    """Prune and recover in turns until ``ratio`` of the slots is gone.

    Args:
        model: The trained network; not changed. It teaches every round.
        example_inputs: A tensor, a tuple or a dict the model can be called with.
        data: Training batches, for recovery and for criteria that need data.
        val: Labelled batches that judge every round.
        ratio: Fraction of the slots to remove in all.
        rounds: How many.
        kind: How the ratio is reached: see `penjing.prune.schedule.schedule`.
        max_drop: Largest loss of validation accuracy against the original (a fraction: 0.01 is one point); a
            round that loses more is undone and ends the run. None lets everything pass.
        criterion, scope, ignore: As for `prune`; the criterion is asked anew in each round.
        reconstruct: Refit each round to the original before its recovery.
        config: Recovery of each round; options, also as a dict.
        last: Recovery of the last round, likewise; ``"same"`` takes that of the others.
        seed: Fixes everything that draws.
        listen: Hears the events.

    Raises:
        DataError, PruneError, RecipeError, RecoverError, TraceError: as from `prune` and `recover`.
    """
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise PruneError(f"max_drop {max_drop} is not in [0, 1]", remedy="Give a fraction: 0.01 is one point")
    chosen, ignore = make_criterion(criterion), checked_patterns(ignore, model)
    each = RecoverConfig.of(config)
    final = each if last == "same" else RecoverConfig.of(last)
    ignored = each.ignore_index
    dense = share_right(model, val, ignored=ignored)
    current, plan, done, removed = model, None, list[Round](), 0.0
    original: Coupling | None = None
    steps = schedule(ratio, rounds, kind)
    for index, step in enumerate(steps):
        removed = 1 - (1 - removed) * (1 - step)
        graph = trace(current, example_inputs)
        coupling = couple(graph, ignore=ignore)
        original = original or coupling
        material = Material(current, graph, coupling, data, None, seed, listen)
        choose = partial(
            _choose, original.groups, plan, coupling.groups, weighed_scores(chosen, material), removed, scope
        )
        made = {"criterion": chosen.name, "scope": scope, "ratio": step, "seed": seed}
        pruned = prune_served(material, example_inputs, choose, made=made)
        whole = pruned.plan if plan is None else plan.then(pruned.plan, original)
        small = pruned.model
        if reconstruct:
            small = refit(small, model, whole, data, seed=seed, listen=listen).model
        before = share_right(small, val, ignored=ignored)
        options = final if index == len(steps) - 1 else each
        small = recover(small, model, data, options, val=val, plan=whole, seed=seed, listen=listen).model
        after = share_right(small, val, ignored=ignored)
        held = max_drop is None or is_allowed(dense - after, max_drop)
        done.append(Round(step, pruned.after["params"], pruned.after["macs"], before, after, held))
        metrics = {"val_pruned": before, "val_accuracy": after, "params": float(pruned.after["params"])}
        listen(Event("prune", "metric", index + 1, len(steps), "round", metrics))
        if not held:
            listen(Event("prune", "warning", message=GradualStop.GUARD.value))
            break
        current, plan = small, whole
    stopped = GradualStop.DONE if done[-1].held else GradualStop.GUARD
    return GradualResult(current, plan, tuple(done), dense, stopped)


def _choose(
    original: Sequence[Group],
    plan: Plan | None,
    groups: Sequence[Group],
    scores: Mapping[str, NDArray[np.float64]],
    removed: float,
    scope: Scope,
    ratios: Mapping[str, float],
) -> Chosen:
    """Kept slots of what a plan has left, so that ``removed`` of the original's is gone: rounded once.

    The choice is made among the original's slots, where those that are gone already go first. Groups that the
    original does not have stay whole. ``ratios`` are fractions of what is left of some groups, by their ids.
    """
    edits = {} if plan is None else plan.groups
    kept = {g.id: edits[g.id].kept if g.id in edits else np.arange(g.size) for g in original}
    names = {} if plan is None else plan.renamed
    known = {names.get(g.id, g.id): g for g in groups}
    known = {key: g for key, g in known.items() if key in kept and len(kept[key]) == g.size}
    of_original = {group.id: np.full(group.size, -np.inf) for group in original}
    own = dict[str, float]()
    for group in original:
        slots = kept[group.id]
        now = known[group.id].id if group.id in known else None
        of_original[group.id][slots] = np.finfo(np.float64).max if now is None else scores[now]
        if now is not None and now in ratios:
            own[group.id] = 1 - (1 - ratios[now]) * len(slots) / group.size
    chosen = allocate(original, of_original, ratio=removed, scope=scope, ratios=own)
    return Chosen(
        {
            group.id: np.flatnonzero(np.isin(kept[key], chosen[key])).astype(np.int64)
            for key, group in known.items()
        }
    )
