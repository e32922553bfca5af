"""The allowed loss, and the order in which sizes are tried against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One size that was pruned to and recovered.

    Attributes:
        number: From 1, in the order of trying.
        power: How far towards the goal: 0 the original, 1 the goal, on a logarithmic scale of cost.
        score: Validation metric after recovery.
        drop: Loss against the original; relative or absolute as the recipe says.
        held: Whether the drop is allowed.
        spent: What is left, by name.
    """

    number: int
    power: float
    score: float
    drop: float
    held: bool
    spent: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dict(vars(self))


def drop_of(before: float, after: float, kind: str) -> float:
    """What was lost: ``before − after``, or that as a share of ``before`` for ``"relative"``."""
    lost = before - after
    if kind == "relative":
        return lost / abs(before) if before else (0.0 if lost <= 0 else float("inf"))
    return lost


def next_power(trials: Sequence[Trial], most: int, *, smallest: bool) -> float | None:
    """The next size to try, or None when the search is over.

    With a budget the goal itself (power 1) is tried first; if it does not hold, sizes between the largest
    power that held (0, the original, holds) and the smallest that did not are bisected. With ``smallest``
    there is no goal but the drop: the bisection starts in the middle.
    """
    if not trials:
        return 0.5 if smallest else 1.0
    if len(trials) >= most or (not smallest and trials[0].held):
        return None
    held = max((t.power for t in trials if t.held), default=0.0)
    failed = [t.power for t in trials if not t.held and t.power > held]
    return (held + min(failed, default=1.0)) / 2


def choose(trials: Sequence[Trial]) -> Trial:
    """The smallest that held; if none did, the one that lost least."""
    held = [t for t in trials if t.held]
    if held:
        return max(held, key=lambda t: (t.power, -t.number))
    return min(trials, key=lambda t: (t.drop, t.number))
