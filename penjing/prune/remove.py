"""Chosen slots removed: the plan, the module that carries it out, and why its class serves or does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from penjing.graph import Coupling, Graph
from penjing.prune.apply import carry_out
from penjing.prune.follow import follow, settled
from penjing.prune.noted import noted
from penjing.prune.plan import AttributeEdit, Plan, tensor_shapes
from penjing.prune.ranges import Positions
from penjing.prune.result import PruneResult, summarise
from penjing.prune.slots import by_leaf, group_edits, index_values, renamed, tensor_edits
from penjing.prune.torn import blame, torn
from penjing.prune.trials import Trials

_WIDER: tuple[dict[str, bool], ...] = ({}, {"given": True}, {"shared": True})
"""What `follow` may take for a number that follows, beyond what is certain, in the order of trying."""


def _distinct(choices: Iterable[tuple[AttributeEdit, ...]]) -> Iterator[tuple[AttributeEdit, ...]]:
    """Each choice once, made when it is asked for."""
    seen = set[tuple[AttributeEdit, ...]]()
    for choice in choices:
        if choice not in seen:
            seen.add(choice)
            yield choice


def prune_slots(
    model: nn.Module,
    example_inputs: Any,
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[str, Positions],
    *,
    made: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Prune to chosen slots: for searches that choose by themselves.

    Args:
        model: The traced model.
        example_inputs: What it was traced with.
        graph: ``trace(model, example_inputs)``.
        coupling: ``couple(graph)``.
        kept: Kept slots (strictly increasing) by group id; groups that are missing stay whole.
        made: What to record in the plan about how it was made.
    """
    leaves = by_leaf(coupling, kept)
    found = (follow(model, graph, coupling, leaves, **wider) for wider in _WIDER)
    done = carry_out(model, graph, coupling, leaves, _distinct(found), example_inputs)
    reason = done.reason and done.reason + blame(torn(model, graph, coupling, leaves))
    trials = Trials(done.model, example_inputs)
    plan = Plan(
        shapes=tensor_shapes(model),
        groups=group_edits(coupling, kept),
        tensors=tensor_edits(graph, coupling, leaves),
        attributes=noted(trials, settled(trials, done.attributes)),
        values=index_values(graph, done.values),
        renamed=renamed(coupling, leaves),
        in_place=done.in_place,
        reason=reason,
        created_by=dict(made or {}),
    )
    return summarise(done.model, plan, graph, coupling, leaves, in_place=done.in_place)
