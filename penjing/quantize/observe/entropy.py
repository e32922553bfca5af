"""The range that keeps the distribution of values closest in information."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.observe.base import HistogramObserver
from penjing.quantize.scheme import LEVELS, activation_params


class Entropy(HistogramObserver):
    """Least Kullback-Leibler divergence of the quantized from the clipped distribution.

    After Migacz, "8-bit inference with TensorRT" (2017): values outside the range count at its ends; each
    level then spreads its count evenly over its non-empty bins. The range shrinks from both sides in
    proportion, and never below the width at which a level is one bin.
    """

    name: ClassVar[str] = "entropy"
    ratios: ClassVar[NDArray[np.float64]] = np.linspace(1.0, 0.1, 91)

    def choose(self, centers_B: NDArray[np.float64], counts_B: NDArray[np.float64]) -> tuple[float, float]:
        """Try every ratio; the widest of equals wins."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        counts_B = self._without_spike(counts_B, centers_B)
        usable = [r for r in self.ratios if r == 1.0 or (high - low) * r / LEVELS >= 2 * self.histogram.width]
        best = min(usable, key=lambda r: self._divergence(low * r, high * r, centers_B, counts_B))
        return low * best, high * best

    def _without_spike(
        self, counts_B: NDArray[np.float64], centers_B: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Give the bin of exact zeros its neighbour's count: zero is exact at every scale, whatever its mass.

        Half of what leaves a ReLU is zero; a level that spread that mass evenly would look like a great loss.
        """
        zero = int(np.argmin(np.abs(centers_B - self.histogram.width / 2)))
        if len(counts_B) < 2 or not np.isclose(centers_B[zero], self.histogram.width / 2):
            return counts_B
        counts_B = counts_B.copy()
        counts_B[zero] = min(counts_B[zero], counts_B[zero + 1 if zero + 1 < len(counts_B) else zero - 1])
        return counts_B

    def _divergence(
        self, low: float, high: float, centers_B: NDArray[np.float64], counts_B: NDArray[np.float64]
    ) -> float:
        inside = (centers_B >= low) & (centers_B <= high)
        if not inside.any():
            return float("inf")
        p_I = counts_B[inside].copy()
        p_I[0] += counts_B[centers_B < low].sum()
        p_I[-1] += counts_B[centers_B > high].sum()
        params = activation_params(low, high)
        level_I = np.clip(np.rint(centers_B[inside] / params.scale) + params.zero_point, 0, LEVELS).astype(
            np.int64
        )
        # The reference spreads what lies inside only: clipped mass is what the divergence must notice.
        total_L = np.bincount(level_I, weights=counts_B[inside], minlength=LEVELS + 1)
        bins_L = np.bincount(level_I, minlength=LEVELS + 1)
        q_I = total_L[level_I] / bins_L[level_I]
        p_I, q_I = p_I / p_I.sum(), q_I / q_I.sum()
        return float(np.sum(p_I * np.log(p_I / q_I)))
