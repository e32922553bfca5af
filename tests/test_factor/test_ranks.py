"""Ranks for a budget: within it, nothing cheaper left unused, beside every combination."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from penjing.factor.ranks import Choice, choose


@st.composite
def problems(draw: st.DrawFn) -> dict[str, list[Choice]]:
    """A few layers whose errors fall as their costs rise."""
    found = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        errors = sorted(draw(st.lists(st.floats(0.001, 1), min_size=1, max_size=5)), reverse=True)
        step = draw(st.integers(1, 50))
        ranks = [Choice(rank + 1, step * (rank + 1), error) for rank, error in enumerate(errors)]
        found[name] = [*ranks, Choice(None, step * (len(errors) + 1), 0.0)]
    return found


@given(problems(), st.floats(0, 1))
def test_within_the_limit_to_one_rank_of_one_layer(layers: dict[str, list[Choice]], share: float) -> None:
    limit = share * sum(each[-1].cost for each in layers.values())
    chosen = choose(layers, limit)
    every = list(product(*layers.values()))
    allowed = [one for one in every if sum(choice.cost for choice in one) <= limit]
    if chosen is None:
        assert not allowed
        return
    spent = sum(one.cost for one in chosen.values())
    assert spent <= limit
    for name, each in layers.items():  # no single layer could be better
        left = limit - spent + chosen[name].cost
        assert min(one.error for one in each if one.cost <= left) == chosen[name].error
    error = sum(one.error for one in chosen.values())
    best = min(sum(choice.error for choice in one) for one in allowed)
    # one price for all is best of all that cost as much: what may be lost is the gap of one layer
    gap = max(a.error - b.error for each in layers.values() for a in each for b in each)
    assert best <= error + 1e-12
    assert error <= best + gap + 1e-9


def test_everything_stays_where_everything_fits() -> None:
    layers = {"a": [Choice(None, 10, 0.0), Choice(1, 4, 0.5)], "b": [Choice(None, 20, 0.0)]}
    found = choose(layers, 30)
    assert found is not None
    assert [one.rank for one in found.values()] == [None, None]
    assert choose(layers, 23) is None
