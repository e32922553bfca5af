"""Sets of positions as short text: ``"0-3,5,8-9"`` stands for 0, 1, 2, 3, 5, 8, 9."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def to_ranges(positions: Positions) -> str:
    """Write strictly increasing positions as ranges (ends included); nothing kept is ``""``.

    >>> to_ranges(np.array([0, 1, 2, 5, 8, 9]))
    '0-2,5,8-9'
    """
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size == 0:
        return ""
    if (np.diff(positions) <= 0).any() or positions[0] < 0:
        raise ValueError("positions must be non-negative and strictly increasing")
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    starts = positions[np.concatenate(([0], breaks))]
    ends = positions[np.concatenate((breaks - 1, [positions.size - 1]))]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def from_ranges(text: str) -> Positions:
    """Read what `to_ranges` wrote.

    >>> from_ranges("0-2,5")
    array([0, 1, 2, 5])
    """
    parts = []
    for piece in text.split(",") if text else []:
        first, _, last = piece.partition("-")
        if last and int(last) <= int(first):
            raise ValueError(f"range {piece!r} is not increasing")
        parts.append(np.arange(int(first), int(last or first) + 1, dtype=np.int64))
    positions = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    if (np.diff(positions) <= 0).any():
        raise ValueError(f"ranges {text!r} are not increasing")
    return positions
