"""Widths: slots are scored, and those that a ratio or budget leaves are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penjing.errors import PruneError
from penjing.prune.allocate import Scope, allocate, own_ratios
from penjing.prune.budget import Budget
from penjing.prune.criteria import Criterion, Material
from penjing.prune.result import PruneResult
from penjing.prune.serve import Chosen, prune_served
from penjing.prune.worth import weighed_scores

if TYPE_CHECKING:
    from penjing.search.sensitivity import Sensitivity


@dataclass(frozen=True)
class Amount:
    """How much goes, and how groups share it: the options of `penjing.prune.api.prune` of these names.

    Attributes:
        ratio: Fraction of the slots to remove; unused with a budget.
        budget: Bounds to meet instead.
        scope: How groups share either.
        ratios: Ratios of their own, by glob.
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
    """Score, allocate and remove slots.

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
    budget, groups = amount.budget, material.coupling.groups
    if budget is None and amount.scope == "sensitivity":
        raise PruneError("scope 'sensitivity' needs a budget", remedy="Pass budget=Budget(…)")
    scores = weighed_scores(criterion, material, budget)
    widths = {"round_to": amount.round_to, "min_slots": amount.min_slots}

    def choose(ratios: Mapping[str, float]) -> Chosen:
        nonlocal sensed  # measured once
        shared: dict[str, Any] = {"scope": amount.scope, "ratios": {**amount.ratios, **ratios}, **widths}
        if budget is None:
            return Chosen(allocate(groups, scores, ratio=amount.ratio, **shared), sensed)
        from penjing.search.fit import fit_to_budget  # only searches measure

        kept, sensed, meter = fit_to_budget(material, scores, example_inputs, budget, sensed=sensed, **shared)
        return Chosen(kept, sensed, meter)

    made = {
        "criterion": criterion.name,
        "scope": amount.scope,
        **({"budget": budget.to_dict()} if budget else {"ratio": amount.ratio}),
        "seed": material.seed,
    }
    asked = {groups[at].id for at in own_ratios(groups, amount.ratios)}
    return prune_served(
        material, example_inputs, choose, made=made, asked=asked, bounded=budget is not None, **widths
    )
