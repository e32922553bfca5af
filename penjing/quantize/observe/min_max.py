"""The range of everything heard."""

from __future__ import annotations

from typing import ClassVar

from penjing.quantize.observe.base import Extremes


class MinMax(Extremes):
    """Smallest and largest value of all samples."""

    name: ClassVar[str] = "min_max"

    def range(self) -> tuple[float, float]:
        """The extremes."""
        return self.low, self.high
