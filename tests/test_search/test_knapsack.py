from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penjing.errors import BudgetError
from penjing.search.knapsack import Levels, cheapest, fill, spend, thin

Floats = NDArray[np.float64]


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[Floats], list[Floats], float]:
    """Damages that never fall, whole costs that never rise, a limit somewhere between."""
    damage, cost = [], []
    for _ in range(draw(st.integers(1, 4))):
        levels = draw(st.integers(1, 5))
        harm = draw(st.lists(st.integers(0, 9), min_size=levels, max_size=levels))
        paid = draw(st.lists(st.integers(0, 12), min_size=levels, max_size=levels))
        damage.append(np.concatenate([[0.0], np.cumsum(harm)]).astype(float))
        cost.append(np.concatenate([[float(sum(paid))], sum(paid) - np.cumsum(paid)]).astype(float))
    least, most = sum(c[-1] for c in cost), sum(c[0] for c in cost)
    return damage, cost, float(draw(st.integers(int(least), max(int(least), int(most)))))


def by_trying_all(damage: Sequence[Floats], cost: Sequence[Floats], limit: float) -> float:
    """Least damage that fits."""
    least: float = min(
        sum(d[k] for d, k in zip(damage, levels, strict=True))
        for levels in product(*(range(len(d)) for d in damage))
        if sum(c[k] for c, k in zip(cost, levels, strict=True)) <= limit
    )
    return least


def total(tables: Sequence[Floats], levels: Levels) -> float:
    return float(sum(one[k] for one, k in zip(tables, levels, strict=True)))


@given(instances())
def test_cheapest_is_what_trying_all_finds(instance: tuple[list[Floats], list[Floats], float]) -> None:
    damage, cost, limit = instance
    found = cheapest(damage, cost, limit)
    assert found is not None
    assert total(cost, found) <= limit
    assert total(damage, found) == by_trying_all(damage, cost, limit)


@given(instances(), st.floats(0.3, 3.0))
def test_cheapest_with_fractions_fits_and_is_near(
    instance: tuple[list[Floats], list[Floats], float], unit: float
) -> None:
    damage, cost, limit = instance
    scaled, bound = [c * unit for c in cost], limit * unit + 1e-3
    found = cheapest(damage, scaled, bound, bins=500)
    tight = bound * (1 - len(cost) / 500)
    if found is None:
        assert sum(c[-1] for c in scaled) > tight
        return
    assert total(scaled, found) <= bound + 1e-9
    if sum(c[-1] for c in scaled) <= tight:
        assert total(damage, found) <= by_trying_all(damage, scaled, tight) + 1e-9


@given(instances())
def test_spend_is_optimal_where_costs_add_up(instance: tuple[list[Floats], list[Floats], float]) -> None:
    damage, cost, limit = instance

    def costs(choices: Sequence[Levels]) -> list[Mapping[str, float]]:
        return [{"c": total(cost, levels)} for levels in choices]

    found = spend(damage, costs, {"c": limit})
    assert found.spent["c"] <= limit
    assert found.damage == by_trying_all(damage, cost, limit)


def chain(widths: Sequence[int], levels: Levels) -> float:
    """Weights of a chain of layers between groups of these widths: costs that multiply."""
    kept = [4, *(w - k for w, k in zip(widths, levels, strict=True)), 3]
    return float(sum(a * b for a, b in pairwise(kept)))


@settings(max_examples=60)
@given(
    widths=st.lists(st.integers(2, 6), min_size=2, max_size=3),
    seed=st.integers(0, 99),
    share=st.floats(0.35, 0.95),
)
def test_spend_on_products_of_widths(widths: list[int], seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    damage = [np.concatenate([[0.0], np.cumsum(rng.random(w - 1))]) for w in widths]
    limit = share * chain(widths, tuple(0 for _ in widths))

    def costs(choices: Sequence[Levels]) -> list[Mapping[str, float]]:
        return [{"c": chain(widths, levels)} for levels in choices]

    if chain(widths, tuple(w - 1 for w in widths)) > limit:
        with pytest.raises(BudgetError, match=r"out of reach.* c [\d,]+ > [\d,]+"):
            spend(damage, costs, {"c": limit})
        return
    found = spend(damage, costs, {"c": limit})
    assert found.spent["c"] <= limit
    # To within one slot: no group can have one back.
    for g, level in enumerate(found.levels):
        if level:
            back = tuple(n - (i == g) for i, n in enumerate(found.levels))
            assert chain(widths, back) > limit
    best = min(
        total(damage, levels)
        for levels in product(*(range(w) for w in widths))
        if chain(widths, levels) <= limit
    )
    assert found.damage <= best + max(float(np.diff(d).max()) for d in damage) + 1e-9


@given(instances(), st.data())
def test_thin_then_fill_ends_within_the_limit(
    instance: tuple[list[Floats], list[Floats], float], data: st.DataObject
) -> None:
    damage, cost, limit = instance

    def costs(choices: Sequence[Levels]) -> list[Mapping[str, float]]:
        return [{"c": total(cost, levels)} for levels in choices]

    start = tuple(data.draw(st.integers(0, len(d) - 1)) for d in damage)
    thinned = thin(start, damage, costs, {"c": limit})
    assert total(cost, thinned) <= limit
    assert all(a >= b for a, b in zip(thinned, start, strict=True))
    filled = fill(thinned, damage, costs, {"c": limit})
    assert filled.spent["c"] <= limit
    assert filled.damage <= total(damage, thinned)


def test_two_limits_both_hold() -> None:
    rng = np.random.default_rng(0)
    damage = [np.concatenate([[0.0], np.cumsum(rng.random(7))]) for _ in range(4)]
    tables = {n: [np.sort(rng.integers(0, 50, 8))[::-1].astype(float) for _ in range(4)] for n in "ab"}

    def costs(choices: Sequence[Levels]) -> list[Mapping[str, float]]:
        return [{n: total(t, levels) for n, t in tables.items()} for levels in choices]

    whole = costs([(0, 0, 0, 0)])[0]
    limits = {"a": 0.7 * whole["a"], "b": 0.6 * whole["b"]}
    found = spend(damage, costs, limits)
    assert all(found.spent[n] <= limit for n, limit in limits.items())


def test_a_latency_out_of_reach_is_told_in_milliseconds() -> None:
    with pytest.raises(BudgetError, match=r"latency 0\.02 ms > 0\.0078 ms"):
        spend([np.zeros(2)], lambda choices: [{"latency": 2e-5}] * len(choices), {"latency": 7.8e-6})
