"""Ranks for a budget: what each layer loses by a rank against what it costs, one price for all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HALVINGS = 100


@dataclass(frozen=True)
class Choice:
    """What a layer may become.

    Attributes:
        rank: Values in between; None leaves the layer as it is.
        cost: MACs or parameters.
        error: Squared error of its output, relative to the output.
    """

    rank: int | None
    cost: int
    error: float


def choose(choices: Mapping[str, Sequence[Choice]], limit: float) -> dict[str, Choice] | None:
    """One choice for each layer: least error in sum within a cost, to within one rank of one layer.

    With a price on cost every layer takes what is best for itself (Everett 1963, "Generalized Lagrange
    multiplier method"); the least price that meets the limit is found by halving, and what it leaves over
    goes to single ranks that take most error away.

    Args:
        choices: For each layer, any order.
        limit: On the sum of costs.

    Returns:
        None where the cheapest choices cost more than that.
    """

    def at(price: float) -> dict[str, Choice]:
        return {
            name: min(each, key=lambda one: (one.error + price * one.cost, one.cost))
            for name, each in choices.items()
        }

    def cost(chosen: Mapping[str, Choice]) -> int:
        return sum(one.cost for one in chosen.values())

    cheapest = {name: min(each, key=lambda one: (one.cost, one.error)) for name, each in choices.items()}
    if cost(cheapest) > limit:
        return None
    chosen, low, high = (
        cheapest,
        0.0,
        1.0,
    )  # errors are shares of 1, costs at least 1: at this price all give in
    if cost(at(low)) <= limit:
        return at(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = at(middle)
        if cost(found) <= limit:
            chosen, high = found, middle
        else:
            low = middle
    return _filled(choices, chosen, limit - cost(chosen))


def _filled(
    choices: Mapping[str, Sequence[Choice]], chosen: dict[str, Choice], left: float
) -> dict[str, Choice]:
    """What is left spent, choice by choice, where it takes most error away."""
    while True:
        better = [
            (chosen[name].error - one.error, name, one)
            for name, each in choices.items()
            for one in each
            if one.error < chosen[name].error and one.cost - chosen[name].cost <= left
        ]
        if not better:
            return chosen
        _, name, one = max(better, key=lambda found: found[0])
        left -= one.cost - chosen[name].cost
        chosen = chosen | {name: one}
