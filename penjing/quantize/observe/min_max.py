"""The range of everything heard."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.observe.base import Observer


class MinMax(Observer):
    """Smallest and largest value of all samples."""

    name: ClassVar[str] = "min_max"

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def update(
        self,
        values_NK: NDArray[np.floating],
        low_N: NDArray[np.floating] | None = None,
        high_N: NDArray[np.floating] | None = None,
    ) -> None:
        """Hear N samples; see `Observer.update`."""
        self.low = min(self.low, float(np.min(values_NK if low_N is None else low_N)))
        self.high = max(self.high, float(np.max(values_NK if high_N is None else high_N)))

    def range(self) -> tuple[float, float]:
        """The extremes."""
        return self.low, self.high
