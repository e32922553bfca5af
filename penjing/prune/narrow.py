"""Widths: score, allocate and remove slots, and what of them stays whole so that the class still serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from penjing.errors import BudgetError, PruneError
from penjing.events import Event
from penjing.graph import Group
from penjing.prune.allocate import Scope, allocate, own_ratios
from penjing.prune.budget import Budget
from penjing.prune.criteria import Criterion, Material
from penjing.prune.granted import granted_widths, written_widths
from penjing.prune.remove import prune_slots
from penjing.prune.result import PruneResult
from penjing.prune.slots import by_leaf
from penjing.prune.torn import Torn, even_ratios, head_sizes, torn
from penjing.prune.worth import per_cost

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
class Amount:
    """How much goes, and how groups share it: the options of `penjing.prune.api.prune` of these names.

    Attributes:
        ratio: Fraction of the slots to remove; unused with a budget.
        budget: Bounds to meet instead.
        scope: How groups share either.
        ratios: Ratios of their own, by glob or group id.
        round_to: Kept counts are multiples of this.
        min_slots: Slots that stay in any group.
    """

    ratio: float
    budget: Budget | None
    scope: Scope
    ratios: Mapping[str, float]
    round_to: int = 1
    min_slots: int = 1


def narrow(
    material: Material,
    example_inputs: Any,
    criterion: Criterion,
    amount: Amount,
    sensed: Sensitivity | None = None,
) -> PruneResult:
    """Score, allocate and remove slots; again with some groups whole or even where only so the class serves.

    Args:
        material: The network, its trace, groups and data.
        example_inputs: As the network is called.
        criterion: What scores the slots.
        amount: How many go.
        sensed: A sensitivity measured before, for scope "sensitivity".

    Raises:
        PruneError: for bad options or scores that are not finite.
        BudgetError: for a budget out of reach.
    """
    attempts = _Attempts(material, example_inputs, criterion, amount, sensed)
    alone = attempts.removed(amount.ratios)
    attempts.sensed = alone.sensitivity  # measured once
    try:
        served = alone if alone.in_place else attempts.served(alone)
    except BudgetError:  # out of reach for so few choices
        return alone
    if served is alone:
        return alone
    served = replace(served, evened=_evened(alone, served))
    if served.evened:
        material.listen(Event("prune", "note", message=served.evened))
    return served


class _Attempts:
    """One amount removed from one network in several ways."""

    def __init__(
        self,
        material: Material,
        example_inputs: Any,
        criterion: Criterion,
        amount: Amount,
        sensed: Sensitivity | None,
    ) -> None:
        if amount.budget is None and amount.scope == "sensitivity":
            raise PruneError("scope 'sensitivity' needs a budget", remedy="Pass budget=Budget(…)")
        self.material, self.example_inputs, self.amount, self.sensed = (
            material,
            example_inputs,
            amount,
            sensed,
        )
        self._scores = criterion.scores(material)
        budget = amount.budget
        if budget is not None and criterion.adds_up and criterion.normalisation == "none":
            self._scores = per_cost(material.graph, material.coupling, self._scores, budget)
        self._made = {
            "criterion": criterion.name,
            "scope": amount.scope,
            **({"budget": budget.to_dict()} if budget else {"ratio": amount.ratio}),
            "seed": material.seed,
        }
        groups = material.coupling.groups
        self._asked = {groups[at].id for at in own_ratios(groups, amount.ratios)}
        self._widths = {"round_to": amount.round_to, "min_slots": amount.min_slots}

    def removed(self, ratios: Mapping[str, float]) -> PruneResult:
        """What scores and these ratios give, whether the class serves or not."""
        material, amount = self.material, self.amount
        sensed, meter = self.sensed, None
        shared: dict[str, Any] = {"scope": amount.scope, "ratios": ratios, **self._widths}
        if amount.budget is None:
            kept = allocate(material.coupling.groups, self._scores, ratio=amount.ratio, **shared)
        else:
            from penjing.search.fit import fit_to_budget  # only searches measure

            kept, sensed, meter = fit_to_budget(
                material, self._scores, self.example_inputs, amount.budget, sensed=sensed, **shared
            )
        graph, coupling = material.graph, material.coupling
        result = prune_slots(material.model, self.example_inputs, graph, coupling, kept, made=self._made)
        return replace(result, sensitivity=sensed, latency=meter)

    def served(self, alone: PruneResult) -> PruneResult:
        """The first attempt whose class serves, if it loses enough, else ``alone``."""
        tried: list[set[str]] = []
        for widths, worth in self._kept_whole():
            whole = widths - self._asked
            if whole in tried:
                continue
            tried.append(whole)
            ratios = {**self.amount.ratios, **dict.fromkeys(whole, 0.0)}
            found = self._even(self.removed(ratios) if whole else alone, ratios, whole)
            if found.in_place:
                return found if _removed(found) >= worth * _removed(alone) else alone
        return alone

    def _kept_whole(self) -> Iterator[tuple[set[str], float]]:
        """Ids of groups to keep whole, the fewest first, and what the class must lose with them.

        Those with a ratio of their own keep it.
        """
        graph, coupling = self.material.graph, self.material.coupling
        yield set(), _WORTH
        yield (
            head_sizes(coupling.groups),
            _WORTH,
        )  # attentions take these for granted, numbers of heads seldom
        for widths in granted_widths(graph, coupling):
            yield widths, _WORTH
        if self.amount.budget is None:  # else what stays whole goes elsewhere, at a loss that nothing shows
            for widths in written_widths(self.material.model, graph, coupling):
                yield widths, _WORTH_WRITTEN

    def _even(self, result: PruneResult, ratios: Mapping[str, float], whole: set[str]) -> PruneResult:
        """Removed again with even ratios until the class serves, or there is nothing to even."""
        material, coupling = self.material, self.material.coupling
        found: tuple[Torn, ...] = ()
        even: dict[str, float] = {}
        free = [group for group in coupling.groups if group.id not in whole]
        for _ in range(_EVENED):
            if result.in_place:
                break
            kept, last = by_leaf(coupling, {key: edit.kept for key, edit in result.plan.groups.items()}), even
            found += torn(material.model, material.graph, coupling, kept)
            settled = {
                group.id: 1 - len(kept[group.leaf]) / group.size if group.leaf in kept else 0.0
                for group in coupling.groups
                if group.id in self._asked
            }
            even = even_ratios(found, free, kept, settled=settled, **self._widths)
            if even in ({}, last):
                break
            result = self.removed({**ratios, **even})
        return result


def _evened(alone: PruneResult, served: PruneResult) -> str:
    """What is said where groups keep other numbers than they would if the class did not count."""
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
        return ""
    named = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if changed[_NAMED:] else "")
    said = f"so that the class serves, groups keep other numbers than scores alone give ({named})"
    return f"{said}: {alone.reason}"


def _removed(result: PruneResult) -> int:
    return result.before["params"] - result.after["params"]
