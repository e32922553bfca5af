"""From scores to kept slots: how many of each group go, and which.

All scopes are one procedure. Groups fall into classes ("local": each group is its own class, "global": one
class, "isomorphic": one class per topology). The slots of a class go in the order of their scores; a ratio
takes that fraction of every class, a budget advances all classes at the same pace until the bounds hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PruneError
from penjing.graph import Group
from penjing.graph.solve import matches
from penjing.prune.budget import Budget, out_of_reach
from penjing.prune.ranges import Positions

Scope = Literal["local", "global", "isomorphic", "sensitivity"]
Kept = dict[str, Positions]
Cost = Callable[[Kept], Mapping[str, float]]

_NEAR = 0.99
"""Share of a bound from which it counts as met by what is left."""


@dataclass(frozen=True)
class Queue:
    """The slots of one group in the order in which they go, cut into steps that are taken whole.

    Attributes:
        slots: Slots, first to go first, shape (removable,).
        sizes: Number of slots of each step, shape (steps,).
        scores: Score of each step, never falling, shape (steps,): a step follows the group's earlier ones.
    """

    slots: Positions
    sizes: Positions
    scores: NDArray[np.float64]

    def kept(self, size: int, steps: int) -> Positions:
        """The slots of a group of ``size`` that stay when the first ``steps`` steps are taken."""
        mask = np.ones(size, dtype=bool)
        mask[self.slots[: int(self.sizes[:steps].sum())]] = False
        return np.flatnonzero(mask).astype(np.int64)

    def within(self, quota: float) -> int:
        """How many steps from the front remove at most ``quota`` slots."""
        return _within(self.sizes, quota)


def allocate(
    groups: Sequence[Group],
    scores: Mapping[str, NDArray[np.float64]],
    *,
    ratio: float = 0.5,
    budget: Budget | None = None,
    cost: Cost | None = None,
    scope: Scope = "local",
    ratios: Mapping[str, float] | None = None,
    round_to: int = 1,
    min_slots: int = 1,
) -> Kept:
    """Choose the kept slots of every group. Deterministic: of equal scores the later slot goes first.

    A ratio is what a dimension loses, not each of its factors: of groups that share one as a product (heads
    and their sizes), the one with the most slots takes it, and the others stay whole.

    Args:
        groups: The groups.
        scores: Score of every slot by group id; low scores go first.
        ratio: Fraction of the slots of each class to remove at most, in [0, 1); unused with a budget.
        budget: Bounds to meet with as few removals as possible, instead of ``ratio``.
        cost: Exact cost by name (``{"params": …}``) of kept slots; needed with ``budget``.
        scope: How groups share a ratio.
        ratios: Ratios of their own for groups with a parameter matching a glob; the last match wins.
        round_to: Kept counts are multiples of this (a group that cannot be loses nothing).
        min_slots: Slots that stay in any group.

    Returns:
        For each group id the kept slots, strictly increasing.

    Raises:
        PruneError: for a ratio outside [0, 1), or a pattern without a match.
        BudgetError: for a budget out of reach.
    """
    _check(ratio, ratios, round_to, min_slots, scope)
    own = own_ratios(groups, ratios or {})
    queues = [queue(group, scores[group.id], round_to, min_slots) for group in groups]
    fixed = np.zeros(len(groups), dtype=np.int64)  # steps taken of each group
    for i, fraction in own.items():
        fixed[i] = _within(queues[i].sizes, fraction * groups[i].size)
    free = [i for i in range(len(groups)) if i not in own]
    if budget is None:
        narrowed = {groups[i].id for i, fraction in own.items() if fraction}
        free = finest([i for i in free if narrowed.isdisjoint(groups[i].cofactors)], groups)
    classes: dict[Hashable, list[int]] = {}
    for i in free:
        classes.setdefault(_CLASS_KEYS[scope](i, groups[i]), []).append(i)
    lines = [_line(members, queues) for members in classes.values()]
    if budget is None:
        for (owners, sizes), members in zip(lines, classes.values(), strict=True):
            count = _within(sizes, ratio * sum(groups[i].size for i in members))
            fixed += np.bincount(owners[:count], minlength=len(groups))
        return _kept(groups, queues, fixed)
    if cost is None:
        raise ValueError("a budget needs a cost")
    totals = [sum(groups[i].size for i in members) for members in classes.values()]
    return _meet(groups, queues, fixed, _interleave(lines, totals), budget, cost)


def topology(group: Group) -> Hashable:
    """What makes groups comparable slot by slot (Fang et al. 2024, "Isomorphic pruning"): kind and members'
    roles.
    """
    roles = sorted((m.tensor.rsplit(".", 1)[-1], m.dim, m.index.shape[1]) for m in group.members)
    return (group.kind, tuple(roles))


_CLASS_KEYS: Mapping[str, Callable[[int, Group], Hashable]] = {
    "local": lambda i, group: i,
    "global": lambda i, group: "all",
    "isomorphic": lambda i, group: topology(group),
}


def _check(
    ratio: float, ratios: Mapping[str, float] | None, round_to: int, min_slots: int, scope: str
) -> None:
    for name, value in {"ratio": ratio, **(ratios or {})}.items():
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise PruneError(
                f"ratio {value!r} of {name!r} is not in [0, 1)", remedy="A ratio is the fraction removed"
            )
    check_widths(round_to, min_slots)
    if scope not in _CLASS_KEYS:  # "sensitivity" is `penjing.search.allocation`, which needs data
        raise PruneError(
            f"unknown scope {scope!r}", remedy=f"Choose one of {', '.join((*_CLASS_KEYS, 'sensitivity'))}"
        )


def check_widths(round_to: int, min_slots: int) -> None:
    """Refuse widths that are no whole numbers.

    Raises:
        PruneError: naming the option.
    """
    for name, number in {"round_to": round_to, "min_slots": min_slots}.items():
        if not isinstance(number, int) or number < 1:
            raise PruneError(f"{name} is {number!r}", remedy="Give a whole number of slots, 1 or more")


def own_ratios(groups: Sequence[Group], ratios: Mapping[str, float]) -> dict[int, float]:
    """Fraction to remove of the groups with a ratio of their own, by their places; the last match wins.

    A pattern of parameters means their dimensions: of each one's factors the finest takes the ratio, the
    others stay whole. A pattern of ids means every group it matches.

    Raises:
        PruneError: for a pattern without a match.
    """
    own: dict[int, float] = {}
    for pattern, value in ratios.items():
        hits = matching(groups, pattern)
        if not hits:
            raise PruneError(
                f"pattern {pattern!r} matches no group", remedy="Run inspect to see the names of the groups"
            )
        by_tensor = [at for at in hits if any(matches(m.tensor, pattern) for m in groups[at].members)]
        whole = set(by_tensor).difference(finest(by_tensor, groups))
        own.update({at: 0.0 if at in whole else value for at in hits})
    return own


def finest(places: Sequence[int], groups: Sequence[Group]) -> list[int]:
    """Of groups that share a dimension as a product the one with the most slots (of equals the first), and
    all that share none.
    """
    taken: set[str] = set()
    for at in sorted(places, key=lambda at: (-groups[at].size, at)):
        if taken.isdisjoint(groups[at].cofactors):
            taken.add(groups[at].id)
    return [at for at in places if groups[at].id in taken]


def matching(groups: Sequence[Group], pattern: str) -> list[int]:
    """Places of the groups with an id or a parameter that a glob matches."""

    def is_meant(group: Group) -> bool:
        return any(matches(name, pattern) for name in (group.id, *(m.tensor for m in group.members)))

    return [at for at, group in enumerate(groups) if is_meant(group)]


def queue(group: Group, scores: NDArray[np.float64], round_to: int = 1, min_slots: int = 1) -> Queue:
    """Order the slots and cut them so that the kept count is a multiple after every step."""
    slots = np.lexsort((-np.arange(group.size), scores))  # first to go first; of equals the later
    stay = _stay(group, slots)
    slots = np.concatenate([slots[~stay], slots[stay]])
    round_to = math.lcm(round_to, group.step)
    least = max(round_to, min_slots, int(stay.sum()))
    ends = np.arange(group.size % round_to or round_to, group.size - least + 1, round_to, dtype=np.int64)
    sizes = np.diff(ends, prepend=0)
    slots = slots[: int(sizes.sum())]
    if not len(ends):
        return Queue(slots, sizes, np.empty(0))
    sums = np.add.reduceat(scores[slots], np.cumsum(sizes) - sizes)
    return Queue(slots, sizes, np.maximum.accumulate(sums / sizes))


def _stay(group: Group, slots: Positions) -> NDArray[np.bool_]:
    """Which slots, in the order in which they go, stay whatever goes before: the last one of each part."""
    stay = np.zeros(len(slots), dtype=bool)
    if not group.parts:
        return stay
    shown = np.zeros((group.size, len(group.parts)), dtype=np.int64)
    for number, part in enumerate(group.parts):
        shown[part, number] = 1
    left = shown.sum(0)
    for number, slot in enumerate(slots):
        lost = shown[slot]
        stay[number] = bool(((lost > 0) & (lost == left)).any())
        if not stay[number]:
            left -= lost
    return stay


def _within(sizes: Positions, quota: float) -> int:
    """How many steps from the front fit the quota together."""
    return int(np.searchsorted(np.cumsum(sizes), quota + 1e-9, side="right"))


def _line(members: Sequence[int], queues: Sequence[Queue]) -> tuple[Positions, Positions]:
    """The steps of a class in order of score: which group each is of, and its size."""
    owners = np.concatenate([np.full(len(queues[i].sizes), i, dtype=np.int64) for i in members])
    sizes = np.concatenate([queues[i].sizes for i in members])
    order = np.argsort(np.concatenate([queues[i].scores for i in members]), kind="stable")
    return owners[order], sizes[order]


def _interleave(lines: Sequence[tuple[Positions, Positions]], totals: Sequence[int]) -> Positions:
    """Steps of all classes (as their groups) in the order in which the removed fraction of their class
    grows.
    """
    if not lines:
        return np.empty(0, dtype=np.int64)
    fractions = [np.cumsum(sizes) / total for (_, sizes), total in zip(lines, totals, strict=True)]
    return np.concatenate([owners for owners, _ in lines])[
        np.argsort(np.concatenate(fractions), kind="stable")
    ]


def _meet(
    groups: Sequence[Group],
    queues: Sequence[Queue],
    fixed: Positions,
    line: Positions,
    budget: Budget,
    cost: Cost,
) -> Kept:
    """The shortest prefix of the line that meets the budget, by bisection on the exact cost.

    Where its last step was a coarse one (a head among channels), finer ones before it are given back.
    """
    limits = budget.limits(cost(_kept(groups, queues, np.zeros_like(fixed))))

    def steps(count: int) -> Positions:
        taken: Positions = fixed + np.bincount(line[:count], minlength=len(groups))
        return taken

    def spent(taken: Positions) -> dict[str, float]:
        return {name: amount for name, amount in cost(_kept(groups, queues, taken)).items() if name in limits}

    def excess(amounts: Mapping[str, float]) -> dict[str, float]:
        return {name: amount for name, amount in amounts.items() if amount > limits[name]}

    least = spent(steps(len(line)))
    if excess(least):
        raise out_of_reach(least, limits)
    low, high = 0, len(line)
    while low < high:
        middle = (low + high) // 2
        if excess(spent(steps(middle))):
            low = middle + 1
        else:
            high = middle
    taken = steps(high)
    if high and "latency" not in limits:  # which is measured for every width tried
        now, full = spent(taken), {int(line[high - 1])}
        for owner in line[: high - 1][::-1].tolist():
            if any(amount > _NEAR * limits[name] for name, amount in now.items()):
                break
            if owner in full:
                continue
            taken[owner] -= 1
            more = spent(taken)
            if excess(more):
                taken[owner] += 1
                full.add(owner)
            else:
                now = more
    return _kept(groups, queues, taken)


def _kept(groups: Sequence[Group], queues: Sequence[Queue], taken: Positions) -> Kept:
    return {
        group.id: line.kept(group.size, int(count))
        for group, line, count in zip(groups, queues, taken, strict=True)
    }
