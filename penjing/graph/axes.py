"""The axis algebra's values: what one dimension of one tensor is made of.

Every dimension of every tensor in a traced network is an axis:

* a `Leaf` of n slots, the thing that can be pruned;
* a `Product`, one dimension holding several axes row-major (what ``view``/``flatten`` make);
* a `Sum`, axes laid end to end (what ``cat``/``chunk``/``pad`` make);
* a `View`, a leaf seen through an index map (what ``flip`` and constant indexing make).

Channels C of a 4×4 feature map, flattened, are one dimension of size 16·C:

>>> c = Leaf(8, "conv.weight:0")
>>> flat = product([c, Leaf(4, "height"), Leaf(4, "width")])
>>> flat.size
128
>>> positions(product([c, Leaf(2, "h")]), {c.id: np.array([0, 3])}).tolist()
[0, 1, 6, 7]

Two branches concatenated are laid end to end, and a flip shows the same slots in reverse:

>>> d = Leaf(4, "other.weight:0")
>>> positions(total([c, d]), {d.id: np.array([1, 2])}).tolist()
[0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
>>> positions(View(d, np.array([3, 2, 1, 0])), {d.id: np.array([0, 1])}).tolist()
[2, 3]

The module knows nothing of torch. `penjing.graph.unify` makes two axes equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Kept = Mapping[int, Index]

_ids = itertools.count()


@dataclass(frozen=True)
class Reason:
    """Why an axis cannot be pruned.

    Attributes:
        kind: ``"input"`` (it is, or follows, a dimension of the model's input), ``"output"``, ``"spatial"``,
            ``"kernel"``, ``"ignored"``, ``"structure"`` (an op needs every slot) or ``"unsolved"`` (no
            rule, or no common factorisation).
        text: One sentence for people.
        op: The op that froze it, e.g. ``"aten.topk.default"``, or "".
        source: ``"file.py:line"`` of the user's code, or "".
    """

    kind: str
    text: str
    op: str = ""
    source: str = ""


class Axis:
    """One dimension of one tensor. Compare with ``is``; the size never changes."""

    __slots__ = ("size",)
    size: int


class Leaf(Axis):
    """An axis of ``size`` slots that stand or fall one by one.

    Attributes:
        id: Unique number; the key of `Kept`.
        label: Where it came from, for people.
        reason: Why it is frozen, or None while it may be pruned.
        bound: What it turned out to be, once refined or merged (only `penjing.graph.unify` sets it).
        views: Index maps through which this leaf is seen somewhere.
    """

    __slots__ = ("bound", "id", "label", "reason", "views")

    def __init__(self, size: int, label: str = "", reason: Reason | None = None) -> None:
        self.size = size
        self.id = next(_ids)
        self.label = label
        self.reason = reason
        self.bound: Axis | None = None
        self.views: list[Index] = []

    def __repr__(self) -> str:
        frozen = f" frozen:{self.reason.kind}" if self.reason else ""
        return f"<{self.label or self.id}:{self.size}{frozen}>"


class Product(Axis):
    """Several axes as one dimension, row-major: position = ((p0·n1) + p1)·n2 + p2 …"""

    __slots__ = ("factors",)

    def __init__(self, factors: Sequence[Axis]) -> None:
        self.factors = tuple(factors)
        size = 1
        for factor in self.factors:
            size *= factor.size
        self.size = size

    def __repr__(self) -> str:
        return "(" + "·".join(map(repr, self.factors)) + ")"


class Sum(Axis):
    """Axes laid end to end in one dimension."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Axis]) -> None:
        self.parts = tuple(parts)
        self.size = sum(part.size for part in self.parts)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.parts)) + ")"


class View(Axis):
    """A leaf through an index map: position i shows slot ``index[i]``; slots may repeat or be missing."""

    __slots__ = ("base", "index")

    def __init__(self, base: Leaf, index: Index) -> None:
        self.base = base
        self.index = index
        self.size = len(index)

    def __repr__(self) -> str:
        return f"{self.base!r}[{self.size}]"


def product(factors: Iterable[Axis]) -> Axis:
    """The row-major product in normal form: nested products opened, factors of size 1 dropped."""
    flat: list[Axis] = []
    for factor in factors:
        if isinstance(factor, Product):
            flat.extend(factor.factors)
        elif factor.size != 1:
            flat.append(factor)
    if not flat:
        return Leaf(1, "one")
    return flat[0] if len(flat) == 1 else Product(flat)


def total(parts: Iterable[Axis]) -> Axis:
    """The sum in normal form: nested sums opened, empty parts dropped, views of one leaf joined."""
    flat: list[Axis] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Sum) else (part,):
            if piece.size == 0:
                continue
            joined = _join(flat[-1], piece) if flat else None
            if joined is None:
                flat.append(piece)
            else:
                flat[-1] = joined
    if not flat:
        return Leaf(0, "empty")
    return flat[0] if len(flat) == 1 else Sum(flat)


def _join(left: Axis, right: Axis) -> Axis | None:
    if not (isinstance(left, View) or isinstance(right, View)):
        return None
    if not (isinstance(left, View | Leaf) and isinstance(right, View | Leaf)):
        return None
    (base, index_left), (other, index_right) = as_view(left), as_view(right)
    return view_of(base, np.concatenate([index_left, index_right])) if base is other else None


def as_view(axis: View | Leaf) -> tuple[Leaf, Index]:
    """A leaf or view as ``(leaf, index map)``."""
    if isinstance(axis, View):
        return axis.base, axis.index
    return axis, np.arange(axis.size, dtype=np.int64)


def view_of(base: Leaf, index: Index) -> Axis:
    """``base`` through ``index``; the identity map is the leaf itself."""
    if len(index) == base.size and np.array_equal(index, np.arange(base.size)):
        return base
    return View(base, index)


def leaves(axis: Axis) -> Iterator[Leaf]:
    """The leaves of a resolved axis, left to right, repeats included."""
    if isinstance(axis, Leaf):
        yield axis
    elif isinstance(axis, View):
        yield axis.base
    elif isinstance(axis, Product):
        for factor in axis.factors:
            yield from leaves(factor)
    elif isinstance(axis, Sum):
        for part in axis.parts:
            if isinstance(part, Leaf):  # the usual part, without a generator of its own
                yield part
            else:
                yield from leaves(part)


def is_fixed(axis: Axis) -> bool:
    """Whether no slot of this (resolved) axis can go: every leaf is frozen or has a single slot."""
    return all(leaf.reason is not None or leaf.size <= 1 for leaf in leaves(axis))


def is_kept_whole(axis: Axis, kept: Kept) -> bool:
    """Whether ``kept`` removes nothing from this axis."""
    return all(leaf.id not in kept or len(kept[leaf.id]) == leaf.size for leaf in leaves(axis))


def positions(axis: Axis, kept: Kept) -> Index:
    """The positions of this dimension that survive.

    Args:
        axis: A resolved axis (as found in a `Coupling`).
        kept: Kept slots, ascending, per leaf id; leaves that are missing keep all their slots.

    Returns:
        Ascending int64 positions in ``range(axis.size)``.
    """
    if isinstance(axis, Leaf):
        slots = kept.get(axis.id)
        return np.arange(axis.size, dtype=np.int64) if slots is None else np.asarray(slots, dtype=np.int64)
    if isinstance(axis, View):
        slots = kept.get(axis.base.id)
        if slots is None:
            return np.arange(axis.size, dtype=np.int64)
        alive = np.zeros(axis.base.size, dtype=bool)
        alive[np.asarray(slots, dtype=np.int64)] = True
        return np.flatnonzero(alive[axis.index])
    if isinstance(axis, Product):
        result: Index = np.zeros(1, dtype=np.int64)
        for factor in axis.factors:
            result = (result[:, None] * factor.size + positions(factor, kept)[None, :]).reshape(-1)
        return result
    assert isinstance(axis, Sum)
    pieces, offset = [], 0
    for part in axis.parts:
        pieces.append(positions(part, kept) + offset)
        offset += part.size
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def count(axis: Axis, kept: Kept) -> int:
    """``len(positions(axis, kept))`` without making them, except under a view."""
    if isinstance(axis, Leaf):
        slots = kept.get(axis.id)
        return axis.size if slots is None else len(slots)
    if isinstance(axis, View):
        return len(positions(axis, kept))
    if isinstance(axis, Product):
        result = 1
        for factor in axis.factors:
            result *= count(factor, kept)
        return result
    assert isinstance(axis, Sum)
    return sum(count(part, kept) for part in axis.parts)


def slot_index(axis: Axis, leaf: Leaf) -> Index:
    """Which positions of ``axis`` each slot of ``leaf`` owns.

    Returns:
        int64 array (leaf.size, k), ascending in each row; rows shorter than k are filled up with -1.
    """
    slots, where = _owned(axis, leaf)
    if len(slots) == leaf.size and np.array_equal(slots, np.arange(leaf.size)):  # one position each
        return where[:, None]
    order = np.lexsort((where, slots))
    slots, where = slots[order], where[order]
    per_slot = np.bincount(slots, minlength=leaf.size)
    width = int(per_slot.max(initial=0))
    result: Index = np.full((leaf.size, width), -1, dtype=np.int64)
    starts = np.cumsum(per_slot) - per_slot
    result[slots, np.arange(len(slots)) - starts[slots]] = where
    return result


_NOTHING: Index = np.zeros(0, dtype=np.int64)


def _owned(axis: Axis, leaf: Leaf) -> tuple[Index, Index]:
    """Pairs (slot of ``leaf``, position of ``axis`` that depends on it), each once."""
    if isinstance(axis, Leaf):
        return (np.arange(axis.size), np.arange(axis.size)) if axis is leaf else (_NOTHING, _NOTHING)
    if isinstance(axis, View):
        return (axis.index, np.arange(axis.size)) if axis.base is leaf else (_NOTHING, _NOTHING)
    found: list[tuple[Index, Index]] = []
    if isinstance(axis, Product):
        before, after = 1, axis.size
        for factor in axis.factors:
            after //= factor.size
            slots, where = _owned(factor, leaf)
            if len(slots):
                outer = np.arange(before)[:, None, None] * factor.size
                spread = ((outer + where[:, None]) * after + np.arange(after)).transpose(1, 0, 2)
                found.append((np.repeat(slots, before * after), spread.reshape(-1)))
            before *= factor.size
    else:
        assert isinstance(axis, Sum)
        offset = 0
        for part in axis.parts:
            if part is leaf or not isinstance(part, Leaf):
                slots, where = _owned(part, leaf)
                if len(slots):
                    found.append((slots, where + offset))
            offset += part.size
    if len(found) < 2:
        return found[0] if found else (_NOTHING, _NOTHING)
    slots, where = (np.concatenate(side) for side in zip(*found, strict=True))
    keys = np.unique(slots * axis.size + where)  # factors that hold the same leaf meet on the diagonal
    return keys // axis.size, keys % axis.size
