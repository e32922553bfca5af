"""How a ratio is reached over several rounds of pruning and recovery."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from penjing.errors import PruneError

Kind = Literal["one-shot", "iterative", "agp"]


def schedule(ratio: float, rounds: int, kind: Kind = "agp") -> list[float]:
    """Fraction of the *then current* slots to remove in each round, so that ``ratio`` of the original goes
    in all.

    * ``"one-shot"``: everything in the last of the rounds' places, that is one entry.
    * ``"iterative"``: the same fraction of what is left each round (geometric).
    * ``"agp"``: the removed fraction follows r·(1 − (1 − t)³) (Zhu & Gupta 2017, "To prune, or not to
      prune", eq. 1).

    Raises:
        PruneError: for a ratio outside [0, 1), no rounds, or an unknown kind.
    """
    if not 0 <= ratio < 1 or rounds < 1:
        raise PruneError(
            f"ratio {ratio} over {rounds} rounds", remedy="Give a ratio in [0, 1) and at least one round"
        )
    if kind == "one-shot":
        return [ratio]
    times = [i / rounds for i in range(rounds + 1)]
    if kind == "iterative":
        removed = [1 - (1 - ratio) ** t for t in times]
    elif kind == "agp":
        removed = [ratio * (1 - (1 - t) ** 3) for t in times]
    else:
        raise PruneError(f"unknown schedule {kind!r}", remedy="Choose one-shot, iterative or agp")
    return [1 - (1 - after) / (1 - before) for before, after in pairwise(removed)]
