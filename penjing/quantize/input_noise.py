"""What rounding to 8 bits adds to a layer's output, by the factors of its input channels.

A step of ``Δ = max(range/f)/255`` adds ``Δ²/12·Σ f²‖w_c‖²``; a weight step ``δ_o = max|w_oc f_c|/127`` adds
``Σ δ_o²/12·Σ power_c/f_c²``. Only the largest weight of an output asks for the matrix itself, which is gone
through in blocks: a layer of hundreds of millions of weights is held once more, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.graph import int_attribute, weight_axis, weight_of
from penjing.quantize.scheme import LEVELS, WEIGHT_MAX

_BLOCK = 2**20
"""Weights that are gone through at a time."""


@dataclass(frozen=True)
class InputWeights:
    """The weights of a layer by what they read.

    Attributes:
        size_RC: Their sizes, outputs by input channels (norms over the kernel); zero where not connected.
        square_C: Sum of their squares for each input channel.
    """

    size_RC: NDArray[np.float32]
    square_C: NDArray[np.float64]

    @classmethod
    def of(cls, node: ir.Node) -> InputWeights:
        """Those of a Conv, Gemm or MatMul."""
        size_RC = _by_input(node, weight_of(node))
        return cls(size_RC, np.einsum("rc,rc->c", size_RC, size_RC, dtype=np.float64))

    def largest_C(self) -> NDArray[np.float32]:
        """The largest size for each input channel."""
        return np.asarray(self.size_RC.max(axis=0))

    def noise(
        self, factor_C: NDArray[np.float64], range_C: NDArray[np.float64], power_C: NDArray[np.float64]
    ) -> float:
        """The noise as a share of the output's power, when each channel is divided by its factor."""
        step = float((range_C / factor_C).max()) / LEVELS
        activation = step**2 * float(self.square_C @ np.square(factor_C))
        spread_C = power_C / np.square(factor_C)
        weight, rows = 0.0, max(1, _BLOCK // len(factor_C))
        for start in range(0, len(self.size_RC), rows):
            block_RC = self.size_RC[start : start + rows]
            largest_R = (block_RC * factor_C.astype(np.float32)).max(axis=1).astype(np.float64)
            weight += float(np.square(largest_R / WEIGHT_MAX) @ ((block_RC != 0.0) @ spread_C))
        signal = float(self.square_C @ power_C)
        return (activation + weight) / max(12.0 * signal, 1e-300)


def total_noise(
    readers: Sequence[InputWeights],
    factor_C: NDArray[np.float64],
    range_C: NDArray[np.float64],
    power_C: NDArray[np.float64],
) -> float:
    """Of all layers that read the channels; see `InputWeights.noise`.

    Args:
        readers: Their weights.
        factor_C: What each channel is divided by.
        range_C: The largest size of each channel's values.
        power_C: Their mean square.
    """
    return sum(weights.noise(factor_C, range_C, power_C) for weights in readers)


def _by_input(node: ir.Node, w: NDArray[np.float32]) -> NDArray[np.float32]:
    if node.op_type != "Conv":
        return np.abs(w if weight_axis(node) == 0 else w.T, order="C")
    groups = int_attribute(node, "group", 1)
    flat_OI = np.sqrt(np.square(w.reshape(*w.shape[:2], -1), dtype=np.float64).sum(axis=2)).astype(np.float32)
    if groups == 1:
        return np.asarray(flat_OI)
    out_RC = np.zeros((len(w), w.shape[1] * groups), np.float32)
    for row in range(len(w)):
        start = (row // (len(w) // groups)) * w.shape[1]
        out_RC[row, start : start + w.shape[1]] = flat_OI[row]
    return out_RC
