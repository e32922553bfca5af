"""The range that leaves out the most extreme values."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.observe.base import HistogramObserver


class Percentile(HistogramObserver):
    """Leaves out one value in ten thousand on each side, to within a bin."""

    name: ClassVar[str] = "percentile"
    percent: ClassVar[float] = 99.99

    def choose(self, centers_B: NDArray[np.float64], counts_B: NDArray[np.float64]) -> tuple[float, float]:
        """The two percentiles."""
        share = np.cumsum(counts_B) / counts_B.sum()
        tail = 1.0 - self.percent / 100.0
        first = int(np.searchsorted(share, tail, side="right"))
        last = int(np.searchsorted(share, 1.0 - tail, side="left"))
        half = self.histogram.width / 2
        return float(centers_B[first]) - half, float(centers_B[min(last, len(share) - 1)]) + half
