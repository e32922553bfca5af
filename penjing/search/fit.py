"""From scores and a budget to kept slots, whatever the budget bounds and however the groups share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from penjing.errors import BudgetError, PruneError
from penjing.events import Event
from penjing.graph import couple, trace
from penjing.prune.allocate import Kept, Scope, allocate
from penjing.prune.budget import Budget
from penjing.prune.cost import Cost
from penjing.prune.criteria import Material
from penjing.search.allocation import allocate_sensitivity
from penjing.search.meter import Meter
from penjing.search.sensitivity import Sensitivity, sensitivity
from penjing.search.whole import REFERENCE, WholeTimer

_BLOCK = 8
"""Widths that CPU kernels take whole. Others leave the runtime's blocked layout: slower, and in jumps."""


def fit_to_budget(
    material: Material,
    scores: Mapping[str, NDArray[np.float64]],
    example_inputs: Any,
    budget: Budget,
    *,
    scope: Scope = "global",
    ratios: Mapping[str, float] | None = None,
    round_to: int = 1,
    min_slots: int = 1,
    sensed: Sensitivity | None = None,
) -> tuple[Kept, Sensitivity | None, dict[str, Any] | None]:
    """Kept slots within a budget.

    Args:
        material: The network, its trace, groups and data.
        scores: Score of every slot by group id.
        example_inputs: As the network is called.
        budget: The bounds.
        scope: How groups share them; ``"sensitivity"`` measures on ``material.data`` unless ``sensed`` is
            given.
        ratios: Ratios of their own for some groups.
        round_to: Kept counts are multiples of this; where latency is bounded, of 8 if that can meet it.
        min_slots: Slots that stay in any group.
        sensed: A sensitivity measured before.

    Returns:
        The slots; the sensitivity, where one was used; where latency is bounded, what was measured.

    Raises:
        BudgetError: for a budget out of reach.
        PruneError: where sensitivity has to be measured and there is no data.
    """
    groups = material.coupling.groups
    meter = Meter(
        material.model,
        example_inputs,
        material.graph,
        material.coupling,
        budget,
        round_to=round_to,
        listen=material.listen,
    )
    felt = (sensed or _sense(material, scores)) if scope == "sensitivity" else None

    def choose(meter: Meter, near: Kept | None) -> Kept:
        options: dict[str, Any] = {"round_to": meter.round_to, "min_slots": min_slots}
        if felt is not None:
            return allocate_sensitivity(groups, scores, felt, meter, ratios=ratios, near=near, **options)
        return allocate(
            groups, scores, budget=meter.absolute, cost=meter, scope=scope, ratios=ratios, **options
        )

    if budget.latency is not None and round_to % _BLOCK and _BLOCK % round_to == 0:
        whole = replace(meter, round_to=_BLOCK)
        try:
            return whole.meet(choose), felt, whole.report()
        except BudgetError as error:
            message = f"{error.cause}; widths need not be multiples of {_BLOCK}"
            material.listen(Event("prune", "note", message=message))
    return meter.meet(choose), felt, meter.report()


def _sense(material: Material, scores: Mapping[str, NDArray[np.float64]]) -> Sensitivity:
    """The damage of every group, measured."""
    if material.data is None:
        raise PruneError(
            "scope 'sensitivity' needs data",
            remedy="Pass data=… (batches of inputs; labels are not used)",
        )
    return sensitivity(material.graph, material.coupling, scores, material.data, listen=material.listen)


def budget_after(budget: Budget, whole: nn.Module, left: nn.Module, example_inputs: Any) -> Budget:
    """The same bounds for a network that is what is left of another: shares stay shares of the whole one.

    Args:
        budget: Bounds on what becomes of ``whole``.
        whole: The original.
        left: A smaller network made of it, to be made smaller still.
        example_inputs: As both are called.
    """
    graph = trace(whole, example_inputs)
    cost = Cost(graph, couple(graph))
    original = {name: getattr(cost, name)({}) for name in budget.bounds if name != "latency"}
    bounds: dict[str, Any] = dict(budget.limits(original))
    if budget.latency_is_share:
        timer = WholeTimer(
            whole, example_inputs, batch=budget.batch, threads=budget.threads, runtime=budget.runtime
        )
        timed = timer({"left": left})  # both fp32: what the share is one of
        share = budget.limits({"latency": timed[REFERENCE] / timed["left"]})["latency"]
        bounds["latency"] = f"{min(share, 1.0):.6g}x"
    return budget.model_copy(update=bounds)
