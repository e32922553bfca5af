"""Second-order rounding: each weight's error is carried over to the weights that are not rounded yet.

Frantar et al. 2022, "GPTQ" (after Frantar and Alistarh 2022, "Optimal Brain Compression"): minimising
``E‖(Ŵ − W)x‖²`` needs only the inputs' second moments ``H = E[xxᵀ]``, which are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from penjing.quantize.calibrate import Visit
from penjing.quantize.graph import int_attribute, ints_attribute, name_of, weight_of
from penjing.quantize.scheme import WEIGHT_MAX
from penjing.quantize.weights import PAIR_MAX, Guard, QuantizedWeight, as_rows, from_rows, highest

MAX_INPUTS = 4608
"""Layers with more inputs per output are rounded to nearest: their moments would take over 170 MB each."""

_SAMPLES, _ROWS_PER_SAMPLE = 128, 32
_COLUMNS = 64


class Moments:
    """``E[xxᵀ]`` of layers' input patches, from a stream: ``GKK`` (G groups), in the runtime's order.

    Of each of the first 128 samples up to 32 positions are used, drawn once per layer and sample.

    Args:
        layers: The layers by output name.
        seed: Of the draw.
    """

    def __init__(self, layers: Mapping[str, ir.Node], seed: int = 0) -> None:
        self._seed = seed
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._rows: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._sources: dict[str, list[tuple[str, ir.Node]]] = {}
        for out, node in layers.items():
            w = weight_of(node)
            size = int(np.prod(w.shape[1:])) if node.op_type == "Conv" else w.size // _num_outputs(node, w)
            if size <= MAX_INPUTS and w.ndim in (2, 4):
                source = node.inputs[0]
                assert source is not None
                self._sources.setdefault(name_of(source), []).append((out, node))

    @property
    def visits(self) -> dict[str, Visit]:
        """What to give `penjing.quantize.calibrate.calibrate` as ``also``."""
        return dict.fromkeys(self._sources, self._visit)

    def _visit(self, name: str, x: NDArray[Any]) -> None:
        seen = self._seen.get(name, 0)
        self._seen[name] = seen + len(x)
        x = x[: max(_SAMPLES - seen, 0)]
        if not len(x):
            return
        for index, (out, node) in enumerate(self._sources[name]):
            rows_GRK = _patches(node, x, np.random.default_rng([self._seed, index, seen]))
            moment = np.matmul(rows_GRK.transpose(0, 2, 1), rows_GRK).astype(np.float64)
            self._sums[out] = self._sums[out] + moment if out in self._sums else moment
            self._rows[out] = self._rows.get(out, 0) + rows_GRK.shape[1]

    def means(self) -> dict[str, NDArray[np.float64]]:
        """The moments by output name."""
        return {out: moment / self._rows[out] for out, moment in self._sums.items()}


def second_order(
    w: NDArray[np.float32],
    start: QuantizedWeight,
    moments_GKK: NDArray[np.float64],
    *,
    guard: Guard,
    top: int = WEIGHT_MAX,
) -> QuantizedWeight:
    """Round ``w`` with the scales of ``start`` so that outputs change least on inputs with these moments.

    Columns are rounded one by one; the error of each moves the rest by ``−e·U[k, k+1:]/U[k, k]`` with ``U``
    the upper Cholesky factor of ``H⁻¹``. Under ``guard="pairs"`` a weight that would overflow with its
    neighbour is held back.
    """
    rows_OK = as_rows(w, start.axis).astype(np.float64)
    groups, size = len(moments_GKK), rows_OK.shape[1]
    scale_GOK = np.broadcast_to(start.scale_O.astype(np.float64)[:, None], rows_OK.shape)
    shape = (groups, -1, size)
    levels_GOK = _round(
        rows_OK.reshape(shape), scale_GOK.reshape(shape), moments_GKK, highest(guard, top), guard == "pairs"
    )
    levels_OK = levels_GOK.reshape(rows_OK.shape)
    return QuantizedWeight(from_rows(levels_OK, w.shape, start.axis), start.scale_O, start.axis)


def second_order_blocks(
    w_NK: NDArray[np.float32],
    scale_NK: NDArray[np.float32],
    moments_GKK: NDArray[np.float64],
    guard: Guard,
    top: int,
) -> NDArray[np.int8]:
    """`second_order` for a linear weight with a step for each entry; gives the levels."""
    rows, scales = w_NK[None].astype(np.float64), scale_NK[None].astype(np.float64)
    return np.asarray(_round(rows, scales, moments_GKK, highest(guard, top), guard == "pairs")[0], np.int8)


def _round(
    rows_GOK: NDArray[np.float64],
    scale_GOK: NDArray[np.float64],
    h_GKK: NDArray[np.float64],
    top: int,
    pairs: bool,
) -> NDArray[np.int8]:
    size = h_GKK.shape[-1]
    # A hundredth of the mean moment on the diagonal keeps rare inputs from taking wild corrections.
    damp_G = np.maximum(0.01 * np.trace(h_GKK, axis1=1, axis2=2) / size, 1e-12)
    inverse_GKK = np.linalg.inv(h_GKK + np.eye(size) * damp_G[:, None, None])
    upper_GKK = np.linalg.cholesky(inverse_GKK).transpose(0, 2, 1)
    rest = rows_GOK.copy()
    levels = np.zeros(rest.shape, np.float64)
    for first in range(0, size, _COLUMNS):
        last = min(first + _COLUMNS, size)
        errors = np.zeros((*rest.shape[:2], last - first))
        for k in range(first, last):
            scale_GO = scale_GOK[:, :, k]
            low, high = np.full(scale_GO.shape, -float(top)), np.full(scale_GO.shape, float(top))
            if pairs and k % 2:
                low = np.maximum(low, -PAIR_MAX - levels[:, :, k - 1])
                high = np.minimum(high, PAIR_MAX - levels[:, :, k - 1])
            levels[:, :, k] = np.clip(np.rint(rest[:, :, k] / scale_GO), low, high)
            error_GO = (rest[:, :, k] - levels[:, :, k] * scale_GO) / upper_GKK[:, None, k, k]
            errors[:, :, k - first] = error_GO
            rest[:, :, k + 1 : last] -= error_GO[:, :, None] * upper_GKK[:, None, k, k + 1 : last]
        # The columns of a block change one another at once, those after it together (lazy batch updates).
        rest[:, :, last:] -= errors @ upper_GKK[:, first:last, last:]
    return levels.astype(np.int8)


def _num_outputs(node: ir.Node, w: NDArray[np.float32]) -> int:
    return int(w.shape[0 if int_attribute(node, "transB", 0) else 1])


def _patches(node: ir.Node, x: NDArray[Any], draw: np.random.Generator) -> NDArray[np.float32]:
    """Input patches ``GRK`` in the order kernel positions, input channels."""
    if node.op_type != "Conv":
        rows = x.reshape(-1, x.shape[-1])
        most = _ROWS_PER_SAMPLE * len(x)
        return rows[None] if len(rows) <= most else rows[None, draw.choice(len(rows), most, replace=False)]
    kernel = ints_attribute(node, "kernel_shape", list(weight_of(node).shape[2:]))
    pads = ints_attribute(node, "pads", [0, 0, 0, 0])
    strides, dilations = ints_attribute(node, "strides", [1, 1]), ints_attribute(node, "dilations", [1, 1])
    groups = int_attribute(node, "group", 1)
    padded = torch.nn.functional.pad(torch.from_numpy(x), (pads[1], pads[3], pads[0], pads[2])).numpy()
    height = (padded.shape[2] - dilations[0] * (kernel[0] - 1) - 1) // strides[0] + 1
    width = (padded.shape[3] - dilations[1] * (kernel[1] - 1) - 1) // strides[1] + 1
    most = min(_ROWS_PER_SAMPLE, height * width)
    chosen = draw.choice(height * width, most, replace=False)
    top, left = (chosen // width) * strides[0], (chosen % width) * strides[1]
    taps = [
        padded[:, :, top + i * dilations[0], left + j * dilations[1]]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    patches_TNCR = np.stack(taps)
    t, n, c, r = patches_TNCR.shape
    grouped = patches_TNCR.reshape(t, n, groups, c // groups, r)
    return np.ascontiguousarray(grouped.transpose(2, 1, 4, 0, 3)).reshape(groups, n * r, t * (c // groups))
