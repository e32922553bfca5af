"""A streaming histogram of fixed size whose result does not depend on how the stream was cut."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_HALF = 4096


class Histogram:
    """Counts in ``2·4096`` bins of width ``2^e`` around zero, exact under growth.

    A bin is ``floor(x / 2^e)``, computed without error in binary floating point. When a value falls outside,
    e grows and neighbours merge (``floor(i / 2)``), which gives the same counts as if the final e had been
    used from the start. So the result is a function of the set of values alone.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * _HALF, np.int64)
        self.exponent: int | None = None

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent or 0)

    def add(self, values: NDArray[np.floating]) -> None:
        """Count all values (any shape); they must be finite."""
        flat = np.ravel(values)
        if flat.size == 0:
            return
        largest = float(max(flat.max(), -flat.min()))
        if largest > 0.0:
            self._fit(largest)
        # Scaling by a power of two does not round, so that floor finds the exact bin.
        index = np.floor(np.ldexp(flat, -(self.exponent or 0))).astype(np.int32) + _HALF
        self.counts += np.bincount(index, minlength=2 * _HALF)

    def nonzero(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres and counts of the non-empty bins, ascending. Exact zeros sit in the bin right of zero."""
        index = np.flatnonzero(self.counts)
        return np.asarray((index - _HALF + 0.5) * self.width, np.float64), self.counts[index].astype(
            np.float64
        )

    def _fit(self, largest: float) -> None:
        # frexp: largest < 2^e, so |x| / 2^(e - 12) < 4096 = _HALF.
        needed = max(math.frexp(largest)[1] - (_HALF.bit_length() - 1), -1000)
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[_HALF // 2 : _HALF // 2 + _HALF] = merged
            self.exponent += 1
