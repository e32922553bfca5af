"""A running average of each sample's extremes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.observe.base import Observer


class MovingAverage(Observer):
    """Exponential average of the samples' extremes, sample by sample (Jacob et al. 2018, section 3.1).

    The n-th sample weighs ``max(1/n, 1 − decay)``: a plain mean at first, so the start leaves no trace.
    """

    name: ClassVar[str] = "moving_average"
    decay: ClassVar[float] = 0.99

    def __init__(self) -> None:
        self.low, self.high, self.heard = 0.0, 0.0, 0

    def update(
        self,
        values_NK: NDArray[np.floating],
        low_N: NDArray[np.floating] | None = None,
        high_N: NDArray[np.floating] | None = None,
    ) -> None:
        """Hear N samples; see `Observer.update`."""
        lows = values_NK.min(axis=1) if low_N is None else low_N
        highs = values_NK.max(axis=1) if high_N is None else high_N
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
            self.heard += 1
            step = max(1.0 / self.heard, 1.0 - self.decay)
            self.low += step * (low - self.low)
            self.high += step * (high - self.high)

    def range(self) -> tuple[float, float]:
        """The averaged extremes."""
        return self.low, self.high
