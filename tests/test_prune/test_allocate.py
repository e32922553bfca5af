from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penjing.errors import BudgetError, PruneError
from penjing.graph import Group, Leaf, Member
from penjing.prune import Budget, allocate
from penjing.prune.allocate import Kept, Scope

Array = NDArray[np.float64]
SCOPES: st.SearchStrategy[Scope] = st.sampled_from(["local", "global", "isomorphic"])


def group(name: str, size: int) -> Group:
    leaf = Leaf(size)
    member = Member(f"{name}.weight", 0, leaf, leaf)
    return Group(f"{name}.weight:0", leaf.id, size, "channel", (member,))


def scores_of(groups: list[Group], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {g.id: rng.random(g.size) for g in groups}


def slots(kept: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
    return {"params": sum(len(k) for k in kept.values())}


def count(kept: Kept) -> list[int]:
    return [len(k) for k in kept.values()]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    ratio=st.floats(0, 0.99),
    round_to=st.integers(1, 8),
    min_slots=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_local_ratio(sizes: list[int], ratio: float, round_to: int, min_slots: int, seed: int) -> None:
    groups = [group(f"g{i}", n) for i, n in enumerate(sizes)]
    scores = scores_of(groups, seed)
    kept = allocate(groups, scores, ratio=ratio, round_to=round_to, min_slots=min_slots)
    for g in groups:
        keep = kept[g.id]
        removed = np.setdiff1d(np.arange(g.size), keep)
        assert len(removed) <= ratio * g.size + 1e-6
        if len(removed):
            assert len(keep) % round_to == 0
            assert len(keep) >= min_slots
            assert scores[g.id][removed].max() <= scores[g.id][keep].min()
        if round_to == 1 and int(ratio * g.size) <= g.size - min_slots:
            assert len(removed) == int(ratio * g.size + 1e-9)


@given(seed=st.integers(0, 99), ratio=st.floats(0, 0.9))
def test_global_ratio_takes_the_lowest_scores(seed: int, ratio: float) -> None:
    groups = [group("a", 10), group("bb", 20), group("ccc", 7)]
    scores = scores_of(groups, seed)
    kept = allocate(groups, scores, ratio=ratio, scope="global")
    removed = sum(g.size - len(kept[g.id]) for g in groups)
    assert removed <= ratio * 37 + 1e-6
    left = [scores[g.id][kept[g.id]] for g in groups if len(kept[g.id]) > 1]
    gone = [np.delete(scores[g.id], kept[g.id]) for g in groups]
    if removed and left:
        assert np.concatenate(gone).max() <= min(values.min() for values in left)


def test_isomorphic_ranks_like_with_like() -> None:
    twins = [group("a", 10), group("bb", 10)]
    odd = Group("odd", 99, 10, "head", twins[0].members)
    scores = {
        "a.weight:0": np.arange(10.0),
        "bb.weight:0": np.arange(10.0) + 100,
        "odd": np.arange(10.0) - 50,
    }
    kept = allocate([*twins, odd], scores, ratio=0.4, scope="isomorphic")
    assert count(kept) == [2, 10, 6]


def test_ties_remove_the_later_slot() -> None:
    g = group("a", 6)
    assert allocate([g], {g.id: np.ones(6)}, ratio=0.5)[g.id].tolist() == [0, 1, 2]


@settings(max_examples=50)
@given(
    seed=st.integers(0, 99),
    fraction=st.floats(0.15, 1.0),
    scope=SCOPES,
)
def test_budget_is_met_to_one_slot(seed: int, fraction: float, scope: Scope) -> None:
    groups = [group("a", 10), group("bb", 33), group("ccc", 7)]
    kept = allocate(
        groups,
        scores_of(groups, seed),
        budget=Budget(params=fraction),
        cost=slots,
        scope=scope,
    )
    assert sum(count(kept)) == int(fraction * 50)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 99),
    fraction=st.floats(0.3, 1.0),
    scope=SCOPES,
)
def test_a_coarse_last_step_gives_finer_ones_back(seed: int, fraction: float, scope: Scope) -> None:
    groups = [group("channels", 40), group("heads", 4), group("few", 7)]
    prices = {"channels.weight:0": 1, "heads.weight:0": 20, "few.weight:0": 3}

    def cost(kept: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
        return {"params": sum(prices[name] * len(slots) for name, slots in kept.items())}

    limit = int(fraction * cost({g.id: np.arange(g.size) for g in groups})["params"])
    scores = scores_of(groups, seed)
    kept = allocate(groups, scores, budget=Budget(params=limit), cost=cost, scope=scope)
    spent = cost(kept)["params"]
    assert spent <= limit
    for g in groups:
        assert len(kept[g.id]) == g.size or spent + prices[g.id] > limit or spent > 0.99 * limit
        removed = np.setdiff1d(np.arange(g.size), kept[g.id])
        assert not len(removed) or scores[g.id][removed].max() <= scores[g.id][kept[g.id]].min()


def test_budget_of_local_scope_is_uniform() -> None:
    groups = [group("a", 10), group("bb", 100)]
    assert count(allocate(groups, scores_of(groups), budget=Budget(params=55), cost=slots)) == [5, 50]


def test_budget_out_of_reach() -> None:
    groups = [group("a", 10)]
    with pytest.raises(BudgetError, match=r"out of reach.*params 1 > 0"):
        allocate(groups, scores_of(groups), budget=Budget(params=0.05), cost=slots)


def test_a_percentage_for_a_budget_is_told_of_shares() -> None:
    groups = [group("a", 10), group("bb", 300)]
    with pytest.raises(BudgetError, match=r"params 2 > 1\. Allow more"):
        allocate(groups, scores_of(groups), budget=Budget(params=0.005), cost=slots)
    with pytest.raises(
        BudgetError, match=r"params 8 > 2\. Write a share as a fraction \(0\.5 is half; above 1"
    ):
        allocate(groups, scores_of(groups), budget=Budget(params=2), cost=slots, min_slots=4)


def test_own_ratios_the_last_match_wins() -> None:
    groups = [group("a", 10), group("bb", 10), group("ccc", 10)]
    kept = allocate(groups, scores_of(groups), ratio=0.5, ratios={"*b*": 0.2, "bb*": 0.0, "ccc.weight": 0.8})
    assert count(kept) == [5, 10, 2]
    with pytest.raises(PruneError, match="matches no group"):
        allocate(groups, scores_of(groups), ratios={"zzz*": 0.1})


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"ratios": {"a*": 1.5}},
        {"round_to": 0},
        {"min_slots": 0},
        {"scope": "x"},
    ],
)
def test_bad_options(options: dict[str, object]) -> None:
    groups = [group("a", 10)]
    with pytest.raises(PruneError):
        allocate(groups, scores_of(groups), **options)  # type: ignore[arg-type]


def test_budget_needs_a_bound() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Budget()
    assert Budget(params=0.5, macs=1000).limits({"params": 10, "macs": 5000}) == {"params": 5, "macs": 1000}


def test_no_part_goes_altogether() -> None:
    """Halves behind a channel shuffle: each is a dimension by itself."""
    g = replace(group("a", 8), parts=(np.arange(4), np.array([6, 7])))
    scores = {g.id: np.arange(8.0)[::-1].copy()}
    kept = allocate([g], scores, ratio=0.9)[g.id]
    assert kept.tolist() == [0, 6]
    assert allocate([g], scores, ratio=0.25)[g.id].tolist() == [0, 1, 2, 3, 4, 6]
