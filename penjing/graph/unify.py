"""Making two axes equal: refinement, distribution and union-find over leaves.

`unify` states ``a = b``. It refines until both sides have the same shape, then leaves merge:

* a leaf becomes whatever it meets;
* products match factor by factor from the left, and a factor that is too large splits (8 = 2·4);
* sums match segment by segment, and a segment that is too long splits (8 = 5 + 3);
* a product meeting a sum is cut along its outer factor, ``(A+B)·C = A·C + B·C``; when the cut falls
  inside the inner factor the outer one is frozen and the product written out, ``2·C = C + C``;
* index maps are carried along; two maps of the same positions merge slots into connected components.

What has no common refinement is frozen on both sides, with the reason given. Nothing here raises for a
network's sake, and the work depends on the number of factors and segments, not on their sizes (index maps
excepted).

>>> from penjing.graph.axes import Leaf, Product, Sum, product, total
>>> why = Reason("unsolved", "example")

A GLU: the linear's 8 outputs are chunked and the halves multiplied, so they go together.

>>> out, a, b = Leaf(8, "linear.weight:0"), Leaf(4, "a"), Leaf(4, "b")
>>> unify(out, total([a, b]), why)
>>> unify(a, b, why)
>>> resolve(out)
(<a:4> + <a:4>)

Heads: a projection of 12 seen as 3 heads of 4, cut in equal parts elsewhere, becomes what both can be.

>>> heads = Leaf(12, "q.weight:0")
>>> unify(heads, product([Leaf(3, "head"), Leaf(4, "dim")]), why)
>>> unify(heads, total([Leaf(4, "first"), Leaf(8, "rest")]), why)
>>> resolve(heads)
((<head[0:1]:1> + <head[1:3]:2>)·<first:4>)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from penjing.graph.axes import (
    Axis,
    Index,
    Leaf,
    Product,
    Reason,
    Sum,
    View,
    as_view,
    is_fixed,
    leaves,
    product,
    total,
    view_of,
)

MAX_WRITTEN_OUT = 1024
"""Outer factors larger than this are not written out as sums; the axis is frozen instead."""


def resolve(axis: Axis) -> Axis:
    """The normal form of ``axis`` over unbound leaves. Idempotent."""
    if isinstance(axis, Leaf):
        return axis if axis.bound is None else _follow(axis)
    if isinstance(axis, View):
        if axis.base.bound is None:
            return axis
        return through(
            resolve(axis.base), axis.index, Reason("unsolved", "an index map cannot be carried on")
        )
    if isinstance(axis, Product):
        factors = [resolve(factor) for factor in axis.factors]
        if all(new is old for new, old in zip(factors, axis.factors, strict=True)):
            return axis
        return product(factors)
    assert isinstance(axis, Sum)
    if _is_open(axis.parts):
        return axis
    parts = [resolve(part) for part in axis.parts]
    if all(new is old for new, old in zip(parts, axis.parts, strict=True)):
        return axis
    return total(parts)


def _is_open(parts: Sequence[Axis]) -> bool:
    """Whether all are unbound leaves: a dense block is a sum of many, read again by every layer."""
    return all(type(part) is Leaf and part.bound is None for part in parts)


def _follow(leaf: Leaf) -> Axis:
    assert leaf.bound is not None
    leaf.bound = resolve(leaf.bound)
    return leaf.bound


def freeze(axis: Axis, reason: Reason) -> None:
    """Keep every slot of ``axis``; the first reason given to a leaf stays."""
    for leaf in leaves(resolve(axis)):
        if leaf.reason is None:
            leaf.reason = reason


def reason_of(axis: Axis, default: Reason) -> Reason:
    """The first reason found on a resolved axis."""
    return next((leaf.reason for leaf in leaves(axis) if leaf.reason is not None), default)


def fixed_like(axis: Axis, size: int, default: Reason) -> Leaf:
    """A frozen leaf of another size that inherits the reason of ``axis``."""
    return Leaf(size, "", reason_of(axis, default))


def unify(a: Axis, b: Axis, why: Reason) -> None:
    """State that ``a`` and ``b`` are the same axis, slot by slot.

    Args:
        a: Any axis.
        b: An axis of the same size; another size freezes both.
        why: The reason recorded where no common refinement exists.
    """
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if a.size != b.size:
        _give_up(a, b, why)
        return
    if a.size <= 1:
        return
    if is_fixed(a):
        freeze(b, reason_of(a, why))
        return
    if is_fixed(b):
        freeze(a, reason_of(b, why))
        return
    if isinstance(b, Leaf) and not b.views:
        _bind(b, a)
    elif isinstance(a, Leaf) and not a.views:
        _bind(a, b)
    elif isinstance(a, Sum):
        _unify_sum(a, b, why)
    elif isinstance(b, Sum):
        _unify_sum(b, a, why)
    elif isinstance(a, Leaf | View) and isinstance(b, Leaf | View):
        _unify_views(a, b)
    else:
        _unify_products(_factors(a), _factors(b), why)


def _give_up(a: Axis, b: Axis, why: Reason) -> None:
    freeze(a, reason_of(a, reason_of(b, why)))
    freeze(b, why)


def _bind(leaf: Leaf, target: Axis) -> None:
    """Let an unviewed leaf be ``target``, which never contains it: equal sizes leave no room for more."""
    if isinstance(target, View) and target.base is leaf:
        _unify_views(leaf, target)
        return
    if leaf.reason is not None:
        freeze(target, leaf.reason)
    if isinstance(target, Leaf) and not target.label:
        target.label = leaf.label
    leaf.bound = target


def _factors(axis: Axis) -> list[Axis]:
    return list(axis.factors) if isinstance(axis, Product) else [axis]


def _unify_products(left: list[Axis], right: list[Axis], why: Reason) -> None:
    """Match two row-major factor lists of equal total size from the left."""
    left.reverse()
    right.reverse()
    while left and right:
        x, y = _pop(left), _pop(right)
        if x is None or y is None:
            left.extend([x] if x is not None else [])
            right.extend([y] if y is not None else [])
            continue
        if x.size == y.size:
            unify(x, y, why)
            continue
        (small, _), (large, rest) = sorted([(x, left), (y, right)], key=lambda pair: pair[0].size)
        halves = factor(large, small.size, why) if large.size % small.size == 0 else None
        if halves is None:
            for axis in (x, y, *left, *right):
                freeze(axis, why)
            return
        unify(halves[0], small, why)
        rest.append(halves[1])


def _pop(stack: list[Axis]) -> Axis | None:
    """The next factor, opened and resolved; None (and dropped) when it has a single slot."""
    top = resolve(stack.pop())
    if isinstance(top, Product):
        stack.extend(reversed(top.factors[1:]))
        top = top.factors[0]
    return None if top.size == 1 else top


def _unify_sum(a: Sum, b: Axis, why: Reason) -> None:
    parts = list(a.parts)
    pieces = segment(b, [part.size for part in parts], why)
    if pieces is None:
        _give_up(a, b, why)
        return
    for part, piece in zip(parts, pieces, strict=True):
        unify(part, piece, why)


def _unify_views(a: Leaf | View, b: Leaf | View) -> None:
    """Merge the slots that two index maps show at the same positions, into connected components."""
    (base_a, index_a), (base_b, index_b) = as_view(a), as_view(b)
    if base_a is base_b and np.array_equal(index_a, index_b):
        return
    one = base_a is base_b
    offset = 0 if one else base_a.size
    labels = _components(base_a.size + (0 if one else base_b.size), index_a, index_b + offset)
    names, labels = np.unique(labels, return_inverse=True)
    labels = labels.astype(np.int64)
    merged = Leaf(len(names), base_a.label, base_a.reason or base_b.reason)
    for base, part in [(base_a, labels[: base_a.size])] + ([] if one else [(base_b, labels[offset:])]):
        base.bound = view_of(merged, part)
        merged.views.append(part)
        merged.views.extend(part[index] for index in base.views)


def _components(size: int, left: Index, right: Index) -> Index:
    """Smallest member of each element's connected component, for edges ``left[i] – right[i]``."""
    labels = np.arange(size, dtype=np.int64)
    while True:
        low = np.minimum(labels[left], labels[right])
        new = labels.copy()
        np.minimum.at(new, left, low)
        np.minimum.at(new, right, low)
        new = new[new]
        if np.array_equal(new, labels):
            return labels
        labels = new


def factor(axis: Axis, outer: int, why: Reason) -> tuple[Axis, Axis] | None:
    """Split ``axis`` as a product of ``outer`` slots by ``axis.size // outer``, refining it; None if it
    cannot be.

    >>> both = Leaf(6, "both")
    >>> factor(both, 2, Reason("unsolved", ""))
    (<both/0:2>, <both/1:3>)
    """
    axis = resolve(axis)
    inner = axis.size // outer
    if outer == 1:
        return Leaf(1, "one"), axis
    if inner == 1:
        return axis, Leaf(1, "one")
    if is_fixed(axis):
        return fixed_like(axis, outer, why), fixed_like(axis, inner, why)
    if isinstance(axis, Leaf):
        maps = [_separable(index, inner) for index in axis.views]
        if any(pair is None for pair in maps):
            return None
        halves = (Leaf(outer, axis.label + "/0", axis.reason), Leaf(inner, axis.label + "/1", axis.reason))
        axis.bound = Product(halves)
        for pair in maps:
            assert pair is not None
            halves[0].views.append(pair[0])
            halves[1].views.append(pair[1])
        return halves
    if isinstance(axis, View):
        return _factor_view(axis, outer, why)
    if isinstance(axis, Product):
        return _factor_product(axis, outer, why)
    assert isinstance(axis, Sum)
    if all(part.size % inner == 0 for part in axis.parts):
        split = [factor(part, part.size // inner, why) for part in axis.parts]
        if any(halves is None for halves in split):
            return None
        pairs = [halves for halves in split if halves is not None]
        for _, right in pairs[1:]:
            unify(pairs[0][1], right, why)
        return total(left for left, _ in pairs), resolve(pairs[0][1])
    if outer > MAX_WRITTEN_OUT:
        return None
    pieces = segment(axis, [inner] * outer, why)
    if pieces is None:
        return None
    for piece in pieces[1:]:
        unify(pieces[0], piece, why)
    return Leaf(outer, "", why), resolve(pieces[0])


def _separable(index: Index, inner: int) -> tuple[Index, Index] | None:
    """Maps (a, b) with ``index[i·inner + j] = a[i]·inner + b[j]``, if there are such."""
    if len(index) == 0 or len(index) % inner:
        return None
    table = index.reshape(-1, inner)
    rows, columns = table[:, 0] // inner, table[0] % inner
    return (rows, columns) if np.array_equal(table, rows[:, None] * inner + columns[None, :]) else None


def _factor_view(axis: View, outer: int, why: Reason) -> tuple[Axis, Axis] | None:
    inner = axis.size // outer
    table = axis.index.reshape(outer, inner)
    if (table == table[0]).all():  # copies laid end to end
        return Leaf(outer, "copies", why), through(axis.base, table[0], why)
    if (table == table[:, :1]).all():  # each slot several times in a row
        return through(axis.base, table[:, 0], why), Leaf(inner, "copies", why)
    maps = _separable(axis.index, inner)
    if maps is None or axis.base.size % inner:
        return None
    halves = factor(axis.base, axis.base.size // inner, why)
    return None if halves is None else (through(halves[0], maps[0], why), through(halves[1], maps[1], why))


def _factor_product(axis: Product, outer: int, why: Reason) -> tuple[Axis, Axis] | None:
    first, rest = axis.factors[0], product(axis.factors[1:])
    if first.size == outer:
        return first, rest
    if first.size % outer == 0:
        halves = factor(first, outer, why)
        return None if halves is None else (halves[0], product([halves[1], resolve(rest)]))
    if outer % first.size == 0:
        halves = factor(rest, outer // first.size, why)
        return None if halves is None else (product([resolve(first), halves[0]]), halves[1])
    return None


def segment(axis: Axis, sizes: Sequence[int], why: Reason) -> list[Axis] | None:
    """Cut ``axis`` into consecutive segments of the given sizes, refining it; None if it cannot be.

    >>> whole = Leaf(5, "whole")
    >>> segment(whole, [2, 3], Reason("unsolved", ""))
    [<whole[0:2]:2>, <whole[2:5]:3>]
    """
    axis = resolve(axis)
    if len(sizes) == 1:
        return [axis]
    if is_fixed(axis):
        return [fixed_like(axis, size, why) for size in sizes]
    bounds = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    if isinstance(axis, View) or (isinstance(axis, Leaf) and axis.views):
        base, index = as_view(axis)
        return [through(base, index[start:stop], why) for start, stop in itertools.pairwise(bounds)]
    if isinstance(axis, Leaf):
        spans = list(itertools.pairwise(bounds))
        parts = [Leaf(stop - start, f"{axis.label}[{start}:{stop}]", axis.reason) for start, stop in spans]
        axis.bound = total(parts)
        return list(parts)
    if isinstance(axis, Product):
        first, rest = axis.factors[0], product(axis.factors[1:])
        if all(size % rest.size == 0 for size in sizes):
            cut = segment(first, [size // rest.size for size in sizes], why)
            return None if cut is None else [product([piece, resolve(rest)]) for piece in cut]
        if first.size > MAX_WRITTEN_OUT:
            return None
        freeze(first, why)
        return _cut([rest] * first.size, sizes, why)
    assert isinstance(axis, Sum)
    return _cut(list(axis.parts), sizes, why)


def _cut(parts: list[Axis], sizes: Sequence[int], why: Reason) -> list[Axis] | None:
    """Regroup parts laid end to end into segments, cutting those that a boundary falls into."""
    stack = parts[::-1]
    pieces: list[Axis] = []
    for size in sizes:
        run: list[Axis] = []
        missing = size
        while missing > 0:
            part = resolve(stack.pop())
            if part.size <= missing:
                run.append(part)
                missing -= part.size
                continue
            cut = segment(part, [missing, part.size - missing], why)
            if cut is None:
                return None
            run.append(cut[0])
            stack.append(cut[1])
            missing = 0
        pieces.append(total(run))
    return [resolve(piece) for piece in pieces]


def through(axis: Axis, index: Index, why: Reason) -> Axis:
    """``axis`` through an index map: position i shows position ``index[i]`` of it.

    Products pass when the map acts on each factor apart (a flip does), sums when their parts can share one
    set of slots; otherwise the axis is frozen and the result is a frozen axis.

    >>> x = Leaf(4, "x")
    >>> through(x, np.array([3, 2, 1, 0]), Reason("unsolved", ""))
    <x:4>[4]
    """
    axis = resolve(axis)
    index = np.asarray(index, dtype=np.int64)
    if len(index) == axis.size and np.array_equal(index, np.arange(axis.size)):
        return axis
    if is_fixed(axis):
        return fixed_like(axis, len(index), why)
    if (
        len(index) == 1
    ):  # an axis with one slot counts as unprunable everywhere, so the slot it shows must stay
        freeze(axis, why)
        return fixed_like(axis, 1, why)
    if isinstance(axis, Leaf | View):
        base, inner = as_view(axis)
        base.views.append(inner[index])
        return view_of(base, inner[index])
    if isinstance(axis, Product):
        rest = product(axis.factors[1:])
        maps = _separable(index, rest.size)
        if maps is not None:
            return product([through(axis.factors[0], maps[0], why), through(rest, maps[1], why)])
    elif isinstance(axis, Sum):
        inside = _within_part(axis, index, why)
        if inside is not None:
            return inside
        merged = _merge_parts(axis)
        if merged is not None:
            base, inner = merged
            base.views.append(inner[index])
            return view_of(base, inner[index])
    freeze(axis, why)
    return Leaf(len(index), "", reason_of(resolve(axis), why))


def _within_part(axis: Sum, index: Index, why: Reason) -> Axis | None:
    """The map as a sum of maps of single parts, if it visits them in few runs."""
    ends = np.cumsum([part.size for part in axis.parts])
    owner = np.searchsorted(ends, index, side="right")
    starts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    if len(starts) > 2 * len(axis.parts):
        return None
    pieces = []
    for start, stop in zip(starts, [*starts[1:], len(index)], strict=True):
        which = int(owner[start])
        local = index[start:stop] - (ends[which] - axis.parts[which].size)
        pieces.append(through(axis.parts[which], local, why))
    return total(resolve(piece) for piece in pieces)


def _merge_parts(axis: Sum) -> tuple[Leaf, Index] | None:
    """One leaf that has the slots of all parts, and where the sum shows each; None when a part is no leaf."""
    bases: dict[int, Leaf] = {}
    for part in axis.parts:
        if not isinstance(part, Leaf | View):
            return None
        base = as_view(part)[0]
        bases[base.id] = base
    if any(base.size == 1 for base in bases.values()):
        return None
    reason = next((base.reason for base in bases.values() if base.reason is not None), None)
    merged = Leaf(sum(base.size for base in bases.values()), next(iter(bases.values())).label, reason)
    starts: dict[int, int] = {}
    start = 0
    for base in bases.values():
        own = np.arange(start, start + base.size, dtype=np.int64)
        base.bound = view_of(merged, own)
        merged.views.append(own)
        merged.views.extend(own[index] for index in base.views)
        starts[base.id] = start
        start += base.size
    shown = [(starts[base.id] + index) for base, index in map(as_view, axis.parts)]  # type: ignore[arg-type]
    return merged, np.concatenate(shown)
