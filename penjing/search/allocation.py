"""Kept slots by measured sensitivity against measured cost (scope ``"sensitivity"``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from penjing.graph import Group
from penjing.prune.allocate import Kept, Queue, own_ratios, queue
from penjing.search.knapsack import Levels, fill, spend, thin
from penjing.search.meter import Meter
from penjing.search.sensitivity import Sensitivity

_LEVELS = 16  # of a group, at most, while the big picture is drawn
_TIE = 1e-9  # damage of removing a whole group where nothing was felt: less removal wins


def allocate_sensitivity(
    groups: Sequence[Group],
    scores: Mapping[str, NDArray[np.float64]],
    sensed: Sensitivity,
    meter: Meter,
    *,
    round_to: int = 1,
    min_slots: int = 1,
    ratios: Mapping[str, float] | None = None,
    near: Kept | None = None,
) -> Kept:
    """The slots of every group that stay, with the least summed damage that the meter's budget allows.

    First widths in up to 16 levels a group by knapsack; then, where counts are bounded and not latency,
    single slots are given back until no further one fits.

    Args:
        groups: The groups.
        scores: Score of every slot by group id; low scores go first.
        sensed: Damage of every group.
        meter: Costs, and the budget.
        round_to: Kept counts are multiples of this.
        min_slots: Slots that stay in any group.
        ratios: Ratios of their own for some groups.
        near: An earlier choice to change as little as the limits ask, now that the meter knows better.

    Raises:
        PruneError: for a budget out of reach.
    """
    lines = [queue(group, scores[group.id], round_to, min_slots) for group in groups]
    limits = meter.limits
    own = own_ratios(groups, ratios or {})

    def ladder_of(choices: Callable[[Group, Queue], Sequence[int]]) -> _Ladder:
        steps = [
            [line.within(own[at] * group.size)] if at in own else choices(group, line)
            for at, (group, line) in enumerate(zip(groups, lines, strict=True))
        ]
        return _Ladder(groups, lines, steps, sensed, meter)

    if near is not None:
        ladder = ladder_of(lambda group, line: _levels(group, line, 2 * _LEVELS))
        return ladder.kept(_moved(ladder, ladder.at(near), limits))
    ladder = ladder_of(lambda group, line: _levels(group, line, _LEVELS))
    chosen = spend(ladder.damage, ladder.costs, limits).levels
    if "latency" in limits:
        return ladder.kept(chosen)
    fine = ladder_of(lambda group, line: range(len(line.sizes) + 1))
    start = fine.at(ladder.kept(chosen))
    return fine.kept(fill(start, fine.damage, fine.costs, limits).levels)


def _moved(ladder: _Ladder, levels: Levels, limits: Mapping[str, float]) -> Levels:
    thinned = thin(levels, ladder.damage, ladder.costs, limits)
    return fill(thinned, ladder.damage, ladder.costs, limits).levels


class _Ladder:
    """Damage and cost of choosing among some numbers of steps of each group."""

    def __init__(
        self,
        groups: Sequence[Group],
        lines: Sequence[Queue],
        steps: Sequence[Sequence[int]],
        sensed: Sensitivity,
        meter: Meter,
    ) -> None:
        self.groups, self.meter = groups, meter
        self._kept = [
            [line.kept(group.size, n) for n in counts]
            for group, line, counts in zip(groups, lines, steps, strict=True)
        ]
        self.damage = []
        for group, kept in zip(groups, self._kept, strict=True):
            removed = 1.0 - np.array([len(slots) for slots in kept]) / group.size
            self.damage.append(sensed.at(group.id, removed) + _TIE * removed)
        self._known: dict[Levels, dict[str, float]] = {}

    def costs(self, choices: Sequence[Levels]) -> list[dict[str, float]]:
        new = {levels: self.kept(levels) for levels in choices if levels not in self._known}
        self.meter.prefetch(new.values())
        for levels, kept in new.items():
            self._known[levels] = self.meter(kept)
        return [self._known[levels] for levels in choices]

    def at(self, kept: Kept) -> Levels:
        """The levels that keep no more than these slots, as nearly as possible."""
        return tuple(
            next((n for n, slots in enumerate(self._kept[i]) if len(slots) <= len(kept[g.id])), -1)
            % len(self._kept[i])
            for i, g in enumerate(self.groups)
        )

    def kept(self, levels: Levels) -> Kept:
        return {g.id: self._kept[i][levels[i]] for i, g in enumerate(self.groups)}


def _levels(group: Group, line: Queue, most: int) -> list[int]:
    """Steps taken at each level: kept counts at multiples of a power of two, so that the widths that vector
    units like are among them.
    """
    unit = 1
    while group.size / unit > most:
        unit *= 2
    kept = group.size - np.concatenate([[0], np.cumsum(line.sizes)])
    chosen = [n for n, count in enumerate(kept) if n == 0 or count % unit == 0]
    if len(chosen) == 1 or len(chosen) > most + 1:  # blocks that do not meet multiples of the unit
        chosen = sorted(set(np.linspace(0, len(line.sizes), min(most, len(line.sizes)) + 1).astype(int)))
    return [int(n) for n in chosen]
