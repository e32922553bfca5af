"""The axis algebra by itself: identities that hold for any axes, then examples."""

from __future__ import annotations

import doctest
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.graph import axes as axes_module
from penjing.graph import unify as unify_module
from penjing.graph.axes import (
    Axis,
    Leaf,
    Product,
    Reason,
    Sum,
    View,
    count,
    is_fixed,
    leaves,
    positions,
    product,
    slot_index,
    total,
)
from penjing.graph.unify import factor, freeze, resolve, segment, through, unify

WHY = Reason("unsolved", "test")


@dataclass
class Shape:
    """A description of an axis, so that the same one can be built twice."""

    kind: str
    size: int
    children: list[Shape] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    share: int = 0


@st.composite
def shapes(draw: st.DrawFn, size: int, depth: int = 3) -> Shape:
    kinds = ["leaf"]
    if depth and size > 1:
        kinds += ["sum", "view"]
        if any(size % d == 0 for d in range(2, size)):
            kinds += ["product", "product"]
    kind = draw(st.sampled_from(kinds))
    if kind == "product":
        outer = draw(st.sampled_from([d for d in range(2, size) if size % d == 0]))
        return Shape(kind, size, [draw(shapes(outer, depth - 1)), draw(shapes(size // outer, depth - 1))])
    if kind == "sum":
        first = draw(st.integers(1, size - 1))
        return Shape(kind, size, [draw(shapes(first, depth - 1)), draw(shapes(size - first, depth - 1))])
    if kind == "view":
        base = draw(st.integers(max(1, size - 2), size + 2))
        return Shape(kind, base, index=draw(st.lists(st.integers(0, base - 1), min_size=size, max_size=size)))
    return Shape("leaf", size, share=draw(st.integers(0, 2)))


def build(shape: Shape, pool: dict[tuple[int, int], Leaf]) -> Axis:
    """The axis of a description; leaves with equal size and share number are one."""
    if shape.kind == "leaf":
        key = (shape.size, shape.share)
        if key not in pool:
            pool[key] = Leaf(shape.size, f"{key}")
        return resolve(pool[key])
    if shape.kind == "view":
        return through(Leaf(shape.size, "base"), np.array(shape.index), WHY)
    inside = [build(child, pool) for child in shape.children]
    return product(inside) if shape.kind == "product" else total(inside)


@st.composite
def equations(draw: st.DrawFn) -> list[tuple[Shape, Shape]]:
    sizes = draw(st.lists(st.sampled_from([2, 3, 4, 6, 8, 12, 24]), min_size=1, max_size=4))
    return [(draw(shapes(size)), draw(shapes(size))) for size in sizes]


def solve(pairs: list[tuple[Shape, Shape]], swap: bool = False) -> list[tuple[Axis, Axis]]:
    pool: dict[tuple[int, int], Leaf] = {}
    built = [(build(a, pool), build(b, pool)) for a, b in pairs]
    for a, b in built:
        unify(b, a, WHY) if swap else unify(a, b, WHY)
    return [(resolve(a), resolve(b)) for a, b in built]


def free_leaves(axes: list[Axis]) -> list[Leaf]:
    return list({leaf.id: leaf for axis in axes for leaf in leaves(axis) if leaf.reason is None}.values())


def draw_kept(draw: st.DrawFn, free: list[Leaf]) -> dict[int, np.ndarray]:
    kept = {}
    for leaf in free:
        if draw(st.booleans()):
            chosen = draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))
            kept[leaf.id] = np.array(sorted(chosen), dtype=np.int64)
    return kept


@settings(max_examples=150, deadline=None)
@given(equations(), st.data())
def test_equal_axes_lose_the_same_positions(pairs: list[tuple[Shape, Shape]], data: st.DataObject) -> None:
    solved = solve(pairs)
    kept = data.draw(st.composite(draw_kept)(free_leaves([axis for pair in solved for axis in pair])))
    for a, b in solved:
        assert a.size == b.size
        np.testing.assert_array_equal(positions(a, kept), positions(b, kept))
        assert count(a, kept) == len(positions(a, kept))


@settings(max_examples=80, deadline=None)
@given(equations())
def test_unify_is_idempotent(pairs: list[tuple[Shape, Shape]]) -> None:
    solved = solve(pairs)
    before = removal_sets(solved)
    for a, b in solved:
        unify(a, b, WHY)
        unify(b, a, WHY)
    assert removal_sets([(resolve(a), resolve(b)) for a, b in solved]) == before


def removal_sets(pairs: list[tuple[Axis, Axis]]) -> set[frozenset[tuple[int, int]]]:
    """Which positions go together, whatever the leaves are called."""
    sets = set()
    for leaf in free_leaves([axis for pair in pairs for axis in pair]):
        for slot in range(leaf.size):
            kept = {leaf.id: np.delete(np.arange(leaf.size), slot)}
            gone = set()
            for number, (a, _) in enumerate(pairs):
                missing = np.setdiff1d(np.arange(a.size), positions(a, kept))
                gone |= {(number, int(position)) for position in missing}
            if gone and leaf.size > 1:
                sets.add(frozenset(gone))
    return sets


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([4, 6, 8, 12]).flatmap(lambda size: st.tuples(shapes(size), shapes(size))))
def test_unify_is_symmetric(pair: tuple[Shape, Shape]) -> None:
    assert removal_sets(solve([pair])) == removal_sets(solve([pair], swap=True))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_slot_index_agrees_with_positions(data: st.DataObject) -> None:
    axis = resolve(build(data.draw(shapes(12)), {}))
    for leaf in free_leaves([axis]):
        owned = slot_index(axis, leaf)
        assert owned.shape[0] == leaf.size
        for slot in range(leaf.size):
            kept = {leaf.id: np.delete(np.arange(leaf.size), slot)}
            gone = np.setdiff1d(np.arange(axis.size), positions(axis, kept))
            np.testing.assert_array_equal(np.unique(owned[slot][owned[slot] >= 0]), gone)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_index_maps_compose(p: list[int], q: list[int]) -> None:
    leaf = Leaf(6)
    both = through(through(leaf, np.array(p), WHY), np.array(q), WHY)
    kept = {leaf.id: np.array([0, 2, 5])}
    np.testing.assert_array_equal(positions(both, kept), positions(View(leaf, np.array(p)[q]), kept))


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_two_permutations_of_one_axis_tie_their_orbits(p: list[int], q: list[int]) -> None:
    leaf = Leaf(6)
    unify(through(leaf, np.array(p), WHY), through(leaf, np.array(q), WHY), WHY)
    orbits = {frozenset([i]) for i in range(6)}
    for a, b in zip(p, q, strict=True):
        one = next(o for o in orbits if a in o)
        two = next(o for o in orbits if b in o)
        orbits = (orbits - {one, two}) | {one | two}
    solved = resolve(leaf)
    merged = next(iter(leaves(solved)))
    assert merged.size == len(orbits)
    rows = slot_index(solved, merged)
    assert {frozenset(row[row >= 0].tolist()) for row in rows} == {frozenset(o) for o in orbits}


def test_distribution() -> None:
    a, b, c = Leaf(2, "a"), Leaf(3, "b"), Leaf(4, "c")
    left = product([total([a, b]), c])
    x, y = Leaf(8, "x"), Leaf(12, "y")
    unify(left, total([x, y]), WHY)
    assert repr(resolve(x)) == "(<a:2>·<c:4>)"
    assert repr(resolve(y)) == "(<b:3>·<c:4>)"


def test_sizes_without_common_factorisation_freeze_both_and_nothing_else() -> None:
    a, b, c, d, other = (Leaf(n) for n in (4, 6, 6, 4, 5))
    unify(product([a, b]), product([c, d]), WHY)
    assert all(is_fixed(resolve(axis)) for axis in (a, b, c, d))
    assert not is_fixed(other)


def test_frozen_passes_on() -> None:
    a, b, c = Leaf(6, "a"), Leaf(6, "b"), Leaf(6, "c")
    unify(a, product([Leaf(2), Leaf(3)]), WHY)
    unify(a, b, WHY)
    freeze(b, Reason("output", "out"))
    unify(c, a, WHY)
    assert is_fixed(resolve(c))
    assert [leaf.reason.kind for leaf in leaves(resolve(a)) if leaf.reason] == ["output", "output"]


def test_rotated_halves_tie() -> None:
    """``cat(-x2, x1)`` added to ``x``, as rotary embeddings do."""
    x = Leaf(8, "x")
    pieces = segment(x, [4, 4], WHY)
    assert pieces is not None
    unify(total(pieces[::-1]), x, WHY)
    solved = resolve(x)
    assert isinstance(solved, Sum)
    assert solved.parts[0] is solved.parts[1]


def test_flip_of_a_product_is_the_product_of_flips() -> None:
    a, b = Leaf(3, "a"), Leaf(4, "b")
    flipped = through(product([a, b]), np.arange(12)[::-1], WHY)
    assert isinstance(flipped, Product)
    kept = {a.id: np.array([0]), b.id: np.array([1, 3])}
    whole = positions(product([a, b]), kept)
    np.testing.assert_array_equal(positions(flipped, kept), np.sort(11 - whole))


def test_factoring_a_sum_ties_inner_factors() -> None:
    a, b = Leaf(4, "a"), Leaf(6, "b")
    halves = factor(total([a, b]), 5, WHY)
    assert halves is not None
    outer, inner = halves
    assert (outer.size, inner.size) == (5, 2)
    assert {leaf.id for leaf in leaves(resolve(inner))} <= {leaf.id for leaf in leaves(resolve(a))}
    assert {leaf.id for leaf in leaves(resolve(inner))} <= {leaf.id for leaf in leaves(resolve(b))}


@pytest.mark.parametrize(("index", "repeated"), [([1, 2, 1, 2], "outer"), ([1, 1, 2, 2], "inner")])
def test_a_view_that_repeats_is_a_product_with_copies(index: list[int], repeated: str) -> None:
    base = Leaf(4, "base")
    halves = factor(through(base, np.array(index), WHY), 2, WHY)
    assert halves is not None
    copies, view = halves if repeated == "outer" else halves[::-1]
    assert is_fixed(copies)
    assert isinstance(view, View)
    assert view.base is base
    assert view.index.tolist() == [1, 2]


@pytest.mark.parametrize("module", [axes_module, unify_module])
def test_worked_examples_in_the_docs(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 5
    assert result.failed == 0
