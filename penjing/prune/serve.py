"""What keeps its slots, or keeps evenly many, so that the class of a pruned network still serves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from penjing.errors import BudgetError
from penjing.events import Event
from penjing.graph import Group
from penjing.prune.allocate import Kept
from penjing.prune.criteria import Material
from penjing.prune.granted import granted_widths, written_widths
from penjing.prune.remove import prune_slots
from penjing.prune.result import PruneResult
from penjing.prune.slots import by_leaf
from penjing.prune.torn import Torn, even_ratios, head_sizes, torn

if TYPE_CHECKING:
    from penjing.search.sensitivity import Sensitivity

_EVENED = 3
"""How often groups are made to keep equally many: where all share a ratio, the others change with it."""
_NAMED = 3
"""Groups that are named where many are meant."""
_WORTH = 0.5
"""What the class must lose at least, of the parameters that the graph loses, to be preferred to it."""
_WORTH_WRITTEN = 0.8
"""The same where more than what is multiplied has to stay whole (`written_widths`)."""


@dataclass(frozen=True)
class Chosen:
    """Slots that stay, and what was measured for the choice.

    Attributes:
        kept: Kept slots by group id.
        sensitivity: The damage of widths, where it decided.
        latency: What was measured, where latency is bounded.
    """

    kept: Kept
    sensitivity: Sensitivity | None = None
    latency: dict[str, Any] | None = None


Choose = Callable[[Mapping[str, float]], Chosen]
"""What stays where some groups, by id, lose these fractions and the others what they would."""


def prune_served(
    material: Material,
    example_inputs: Any,
    choose: Choose,
    *,
    made: Mapping[str, Any],
    asked: Collection[str] = (),
    bounded: bool = False,
    round_to: int = 1,
    min_slots: int = 1,
) -> PruneResult:
    """Remove what is chosen; again with some groups whole or even where only so the class serves.

    Args:
        material: The network, its trace and groups.
        example_inputs: As the network is called.
        choose: Says what stays.
        made: What to record in the plan about how it was made.
        asked: Ids of groups that have a ratio of their own, which holds.
        bounded: Whether a budget holds: what stays whole then has to go elsewhere.
        round_to: Kept counts are multiples of this.
        min_slots: Slots that stay in any group.

    Raises:
        BudgetError: for a budget out of reach.
    """
    graph, coupling, model = material.graph, material.coupling, material.model

    def removed(ratios: Mapping[str, float]) -> PruneResult:
        chosen = choose(ratios)
        result = prune_slots(model, example_inputs, graph, coupling, chosen.kept, made=made)
        return replace(result, sensitivity=chosen.sensitivity, latency=chosen.latency)

    def evened(result: PruneResult, whole: Mapping[str, float]) -> PruneResult:
        """Removed again with even ratios until the class serves, or there is nothing to even."""
        found: tuple[Torn, ...] = ()
        even: dict[str, float] = {}
        free = [group for group in coupling.groups if group.id not in whole]
        for _ in range(_EVENED):
            if result.in_place:
                break
            kept, last = by_leaf(coupling, {key: edit.kept for key, edit in result.plan.groups.items()}), even
            found += torn(model, graph, coupling, kept)
            settled = {
                group.id: 1 - len(kept[group.leaf]) / group.size if group.leaf in kept else 0.0
                for group in coupling.groups
                if group.id in asked
            }
            even = even_ratios(found, free, kept, settled=settled, round_to=round_to, min_slots=min_slots)
            if even in ({}, last):
                break
            result = removed({**whole, **even})
        return result

    alone, tried = removed({}), list[set[str]]()
    if alone.in_place:
        return alone
    try:
        for widths, worth in _kept_whole(material, bounded=bounded):
            ids = widths.difference(asked)
            if ids in tried:
                continue
            tried.append(ids)
            whole = dict.fromkeys(ids, 0.0)
            served = evened(removed(whole) if whole else alone, whole)
            if served.in_place:
                return _told(alone, served, material) if _lost(served) >= worth * _lost(alone) else alone
    except BudgetError:  # out of reach for so few choices
        return alone
    return alone


def _kept_whole(material: Material, *, bounded: bool) -> Iterator[tuple[set[str], float]]:
    """Ids of groups to keep whole, the fewest first, and what the class must lose with them."""
    graph, coupling = material.graph, material.coupling
    yield set(), _WORTH
    yield head_sizes(coupling.groups), _WORTH  # attentions take these for granted, numbers of heads seldom
    for widths in granted_widths(graph, coupling):
        yield widths, _WORTH
    if not bounded:  # else what stays whole would go elsewhere, at a loss that nothing shows
        for widths in written_widths(material.model, graph, coupling):
            yield widths, _WORTH_WRITTEN


def _told(alone: PruneResult, served: PruneResult, material: Material) -> PruneResult:
    """The result, and said where groups keep other numbers than they would if the class did not count."""
    from penjing.report import text

    def kept(result: PruneResult, group: Group) -> int:
        edit = result.plan.groups.get(group.id)
        return group.size if edit is None else len(edit.kept)

    changed = [
        f"{text.group(group.id)} {kept(served, group)} instead of {kept(alone, group)}"
        for group in served.groups
        if kept(served, group) != kept(alone, group)
    ]
    if not changed:
        return served
    named = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if changed[_NAMED:] else "")
    said = f"so that the class serves, groups keep other numbers than scores alone give ({named})"
    served = replace(served, evened=f"{said}: {alone.reason}")
    material.listen(Event("prune", "note", message=served.evened))
    return served


def _lost(result: PruneResult) -> int:
    return result.before["params"] - result.after["params"]
