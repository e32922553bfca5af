"""How much of each group to remove: least damage for what a budget leaves.

`cheapest` is the multiple-choice knapsack for costs that add up, by dynamic programming (Kellerer, Pferschy &
Pisinger 2004, *Knapsack Problems*, section 11.5). In a network they do not: an operator between two groups
costs their product. `spend` therefore solves it again and again with each group's costs taken where the other
groups stand now, and then gives back, step by step, whatever still fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penjing.prune.budget import out_of_reach

Floats = NDArray[np.float64]
Levels = tuple[int, ...]
Costs = Callable[[Sequence[Levels]], Sequence[Mapping[str, float]]]
"""Costs by name of several choices of levels at once."""

_ROUNDS = 12
_BINS = 4096


@dataclass(frozen=True)
class Choice:
    """A level for each group.

    Attributes:
        levels: Level 0 removes nothing.
        damage: Sum of the damages.
        spent: Cost by name.
    """

    levels: Levels
    damage: float
    spent: Mapping[str, float]


def cheapest(
    damage: Sequence[Floats], cost: Sequence[Floats], limit: float, bins: int = _BINS
) -> Levels | None:
    """One level for each group with the least total damage whose costs add up to at most ``limit``.

    Exact where costs and limit are whole numbers and the limit is at most ``bins``; else costs are rounded
    up to limit / bins, so that the answer always fits and is optimal to within (groups / bins) of the limit.

    Args:
        damage: For each group the damage of each level, shape (levels,).
        cost: For each group the cost of each level, shape (levels,).
        limit: Most that may be spent.

    Returns:
        The levels, or None where nothing fits.
    """
    whole = limit <= bins and all(np.array_equal(one, np.round(one)) for one in cost)
    unit = 1.0 if whole else limit / bins
    if not limit > 0 and not whole:
        return None
    size = int(np.floor(limit / unit + 1e-9))
    if size < 0:
        return None
    best = np.zeros(size + 1)
    taken = np.zeros((len(cost), size + 1), dtype=np.int32)
    steps = [np.ceil(one / unit - 1e-9).astype(np.int64) for one in cost]
    for g, (harm, step) in enumerate(zip(damage, steps, strict=True)):
        now = np.full(size + 1, np.inf)
        for level in range(len(harm)):
            if step[level] > size:
                continue
            shifted = np.full(size + 1, np.inf)
            shifted[step[level] :] = best[: size + 1 - step[level]] + harm[level]
            better = shifted < now
            now[better] = shifted[better]
            taken[g][better] = level
        best = now
    at = int(np.argmin(best))
    if not np.isfinite(best[at]):
        return None
    levels = []
    for g in reversed(range(len(cost))):
        level = int(taken[g][at])
        levels.append(level)
        at -= int(steps[g][level])
    return tuple(reversed(levels))


def spend(damage: Sequence[Floats], costs: Costs, limits: Mapping[str, float]) -> Choice:
    """Levels with little damage that cost at most ``limits``, for costs that do not add up.

    Args:
        damage: For each group the damage of each level; it never falls from one level to the next.
        costs: Costs of choices; more removal never costs more, but for the noise of measured latencies.
        limits: Largest cost, by name.

    Returns:
        A choice within the limits in which no group can go back one level.

    Raises:
        BudgetError: if not even the highest levels fit.
    """
    lowest: Levels = tuple(len(one) - 1 for one in damage)
    (floor,) = costs([lowest])
    if any(floor[name] > limit for name, limit in limits.items()):
        raise out_of_reach(floor, limits)
    candidates = [lowest]
    for start in (tuple(0 for _ in damage), lowest):
        candidates += _relinearised(start, damage, costs, limits)
    unique = list(dict.fromkeys(candidates))
    spent = dict(zip(unique, costs(unique), strict=True))
    fitting = [levels for levels in unique if _fits(spent[levels], limits)]
    filled = [fill(levels, damage, costs, limits) for levels in fitting]
    return min(filled, key=lambda choice: (choice.damage, choice.levels))


def fill(levels: Levels, damage: Sequence[Floats], costs: Costs, limits: Mapping[str, float]) -> Choice:
    """Give back one level at a time, most damage undone per cost first, until nothing more fits.

    Args:
        levels: A choice within the limits.
        damage: As in `spend`.
        costs: As in `spend`.
        limits: As in `spend`.
    """
    (spent,) = costs([levels])
    while True:
        steps = [_with(levels, g, level - 1) for g, level in enumerate(levels) if level > 0]
        fitting = [
            (_total(damage, levels) - _total(damage, step), after, step)
            for step, after in zip(steps, costs(steps) if steps else (), strict=True)
            if _fits(after, limits)
        ]
        if not fitting:
            return Choice(levels, _total(damage, levels), dict(spent))
        _, spent, levels = max(fitting, key=lambda one: _worth(one[0], one[1], spent, limits))


def thin(levels: Levels, damage: Sequence[Floats], costs: Costs, limits: Mapping[str, float]) -> Levels:
    """Remove one level at a time, least damage per cost first, until the limits hold or nothing is left."""
    (spent,) = costs([levels])
    while not _fits(spent, limits):
        steps = [_with(levels, g, n + 1) for g, n in enumerate(levels) if n + 1 < len(damage[g])]
        if not steps:
            break
        after = costs(steps)
        harm = [_total(damage, step) - _total(damage, levels) for step in steps]
        saving = [_excess(spent, limits) - _excess(one, limits) for one in after]
        useful = [at for at, saved in enumerate(saving) if saved > 0] or list(range(len(steps)))
        at = min(useful, key=lambda at: harm[at] / max(saving[at], 1e-12))
        levels, spent = steps[at], after[at]
    return levels


def _excess(spent: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """How far the bounds that are missed are missed, relative, in all."""
    return sum(max(0.0, spent[name] - limit) / (limit or 1.0) for name, limit in limits.items())


def _relinearised(
    start: Levels, damage: Sequence[Floats], costs: Costs, limits: Mapping[str, float]
) -> list[Levels]:
    """Solve with costs taken around the present choice, move there, and so on until it stays or repeats."""
    levels, seen = start, [start]
    # Several bounds become one by weights that grow where a bound is missed; one bound stays in its own unit,
    # so that whole numbers stay whole.
    unit = {name: 1.0 if len(limits) == 1 else limit or 1.0 for name, limit in limits.items()}
    weights = dict.fromkeys(limits, 1.0)
    for _ in range(_ROUNDS):
        (here,) = costs([levels])
        singles = [_with(levels, g, k) for g, one in enumerate(damage) for k in range(len(one))]
        answers = iter(costs(singles))
        tables = [
            np.array([_weighed(next(answers), here, weights, unit) for _ in range(len(one))])
            for one in damage
        ]
        lows = [float(table.min()) for table in tables]
        room = _weighed(limits, here, weights, unit) - sum(lows)
        found = cheapest(damage, [table - low for table, low in zip(tables, lows, strict=True)], room)
        if found is None:  # the linear picture says that nothing fits: go half the way down and look again
            found = tuple((level + len(one)) // 2 for level, one in zip(levels, damage, strict=True))
        if found in seen:
            break
        seen.append(found)
        levels = found
        (after,) = costs([levels])
        for name, limit in limits.items():
            weights[name] *= (
                float(np.clip(after[name] / (limit or 1.0), 0.5, 2.0)) if len(limits) > 1 else 1.0
            )
    return [_lowered(levels, damage, costs, limits) for levels in seen[1:]]


def _weighed(
    there: Mapping[str, float],
    here: Mapping[str, float],
    weights: Mapping[str, float],
    unit: Mapping[str, float],
) -> float:
    return float(sum(w * (there[name] - here[name]) / unit[name] for name, w in weights.items()))


def _lowered(levels: Levels, damage: Sequence[Floats], costs: Costs, limits: Mapping[str, float]) -> Levels:
    """The choice if it fits, else the same with every group a level lower, as often as needed."""
    for _ in range(max(len(one) for one in damage)):
        (spent,) = costs([levels])
        if _fits(spent, limits):
            break
        levels = tuple(min(level + 1, len(one) - 1) for level, one in zip(levels, damage, strict=True))
    return levels


def _fits(spent: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return all(spent[name] <= limit for name, limit in limits.items())


def _worth(
    gain: float, after: Mapping[str, float], before: Mapping[str, float], limits: Mapping[str, float]
) -> float:
    extra = max((after[name] - before[name]) / (limit or 1.0) for name, limit in limits.items())
    return float("inf") if extra <= 0 else gain / extra


def _total(damage: Sequence[Floats], levels: Levels) -> float:
    return float(sum(one[level] for one, level in zip(damage, levels, strict=True)))


def _with(levels: Levels, at: int, level: int) -> Levels:
    return (*levels[:at], level, *levels[at + 1 :])
