"""What every observer does: hear values in a stream, then say a range."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.observe.histogram import Histogram


class Observer(ABC):
    """Finds the range of one tensor from a stream of samples, in memory that does not grow with their number.

    The result depends on the samples and their order, never on how they were split into batches.
    """

    name: ClassVar[str]

    @abstractmethod
    def update(
        self,
        values_NK: NDArray[np.floating],
        low_N: NDArray[np.floating] | None = None,
        high_N: NDArray[np.floating] | None = None,
    ) -> None:
        """Hear N samples.

        Args:
            values_NK: K values of each sample (all of them, or a draw).
            low_N: Smallest value of each sample, when ``values_NK`` is only a draw.
            high_N: Largest value of each sample, likewise.
        """

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """The range ``(low, high)`` to quantize over. Call after at least one `update`."""


class Extremes(Observer):
    """Base of observers that know the smallest and largest value heard."""

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


class HistogramObserver(Extremes):
    """Base of observers that decide on the histogram of all values heard."""

    def __init__(self) -> None:
        super().__init__()
        self.histogram = Histogram()

    def update(
        self,
        values_NK: NDArray[np.floating],
        low_N: NDArray[np.floating] | None = None,
        high_N: NDArray[np.floating] | None = None,
    ) -> None:
        """Hear N samples; see `Observer.update`."""
        super().update(values_NK, low_N, high_N)
        self.histogram.add(values_NK)

    def range(self) -> tuple[float, float]:
        """The chosen range, never wider than what was heard."""
        low, high = self.choose(*self.histogram.nonzero())
        return max(low, self.low), min(high, self.high)

    @abstractmethod
    def choose(self, centers_B: NDArray[np.float64], counts_B: NDArray[np.float64]) -> tuple[float, float]:
        """The range, from the centres and counts of the non-empty bins in ascending order."""
