"""Affine quantization arithmetic: ``x ≈ scale · (q − zero_point)`` (Jacob et al. 2018, eq. 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 255
"""Steps of an unsigned 8-bit activation."""

WEIGHT_MAX = 127
"""Largest magnitude of a symmetric signed 8-bit weight."""


def weight_top(bits: int) -> int:
    """Largest magnitude of a symmetric signed weight of so many bits."""
    return (1 << (bits - 1)) - 1


@dataclass(frozen=True)
class ActivationParams:
    """How one activation tensor is stored in unsigned 8 bits.

    Attributes:
        scale: Step, float32 as the file holds it.
        zero_point: The value that stands for 0.0, in 0..255.
    """

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """Smallest value represented."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """Largest value represented."""
        return (LEVELS - self.zero_point) * self.scale


def activation_params(low: float, high: float) -> ActivationParams:
    """Parameters whose range covers ``[low, high]`` and holds 0.0 exactly.

    Zero must be exact so that padding and ReLU cost nothing. A range of zero width at 0.0 gets scale 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / LEVELS))
    if scale < np.finfo(np.float32).tiny:
        return ActivationParams(1.0, 0)
    zero_point = int(np.clip(np.rint(-low / scale), 0, LEVELS))
    return ActivationParams(scale, zero_point)


def fake_quantize(x: NDArray[np.floating], params: ActivationParams) -> NDArray[np.float64]:
    """``x`` rounded to what the 8-bit tensor can hold, in float64, half to even as ONNX does."""
    q = np.rint(np.asarray(x, np.float64) / params.scale) + params.zero_point
    return np.asarray((np.clip(q, 0, LEVELS) - params.zero_point) * params.scale, np.float64)


def decibels(signal: float, noise: float) -> float:
    """``10·log10(signal/noise)`` of two powers; 200 dB stands for no measurable error, −200 for no signal or
    an infinite error.
    """
    if noise <= 0.0:
        return 200.0
    if signal <= 0.0 or math.isinf(noise):
        return -200.0
    return float(np.clip(10.0 * np.log10(signal / noise), -200.0, 200.0))
