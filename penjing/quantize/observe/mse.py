"""The range with the least squared error of rounding and clipping together."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.observe.base import HistogramObserver
from penjing.quantize.scheme import activation_params, fake_quantize


class MeanSquaredError(HistogramObserver):
    """Least ``E[(x − Q(x))²]`` over ranges that shrink from either side."""

    name: ClassVar[str] = "mse"
    ratios: ClassVar[NDArray[np.float64]] = np.concatenate(
        [np.linspace(1.0, 0.5, 26), np.geomspace(0.47, 0.1, 12)]
    )

    def choose(self, centers_B: NDArray[np.float64], counts_B: NDArray[np.float64]) -> tuple[float, float]:
        """Shrink both sides together, then each alone."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        # Bin centres can lie outside what was heard by half a bin.
        x_B = np.clip(centers_B, self.low, self.high)

        def error(pair: tuple[float, float]) -> float:
            rounded_B = fake_quantize(x_B, activation_params(*pair))
            return float(counts_B @ np.square(rounded_B - x_B))

        best = min(((low * r, high * r) for r in self.ratios), key=error)
        fine = np.linspace(0.6, 1.4, 21)
        for _ in range(2):
            best = min([best, *((best[0], min(best[1] * r, high)) for r in fine)], key=error)
            if low < 0.0:
                best = min([best, *((max(best[0] * r, low), best[1]) for r in fine)], key=error)
        return best
