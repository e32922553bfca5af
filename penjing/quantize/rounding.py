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

from penjing.quantize.calibrate import stream
from penjing.quantize.feeds import Feeds
from penjing.quantize.graph import int_attribute, ints_attribute, name_of, weight_of
from penjing.quantize.scheme import WEIGHT_MAX
from penjing.quantize.weights import PAIR_MAX, Guard, QuantizedWeight, as_rows, from_rows

MAX_INPUTS = 4608
"""Layers with more inputs per output are rounded to nearest: their moments would take over 170 MB each."""

_ROWS_PER_SAMPLE = 64


def second_moments(
    model: ir.Model, feeds: Feeds, layers: Mapping[str, ir.Node], *, memory_mb: int, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """``E[xxᵀ]`` of each layer's input patches: ``GKK`` (G groups), by output name, in the runtime's order.

    Of each sample, up to 64 positions are used, drawn once per layer.
    """
    sources: dict[str, list[tuple[str, ir.Node]]] = {}
    for out, node in layers.items():
        w = weight_of(node)
        size = int(np.prod(w.shape[1:])) if node.op_type == "Conv" else w.size // _num_outputs(node, w)
        if size <= MAX_INPUTS and w.ndim in (2, 4):
            source = node.inputs[0]
            assert source is not None
            sources.setdefault(name_of(source), []).append((out, node))
    found: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}

    def visit(name: str, x: NDArray[Any]) -> None:
        for index, (out, node) in enumerate(sources[name]):
            rows_GRK = _patches(node, x, np.random.default_rng([seed, index, counts.get(out, 0)]))
            moment = np.einsum("grk,grl->gkl", rows_GRK, rows_GRK, optimize=True).astype(np.float64)
            found[out] = found[out] + moment if out in found else moment
            counts[out] = counts.get(out, 0) + rows_GRK.shape[1]

    if sources:
        stream(model, feeds, sources, visit, memory_mb=memory_mb)
    return {out: moment / counts[out] for out, moment in found.items()}


def second_order(
    w: NDArray[np.float32], start: QuantizedWeight, moments_GKK: NDArray[np.float64], *, guard: Guard
) -> QuantizedWeight:
    """Round ``w`` with the scales of ``start`` so that outputs change least on inputs with these moments.

    Columns are rounded one by one; the error of each moves the rest by ``−e·U[k, k+1:]/U[k, k]`` with ``U``
    the upper Cholesky factor of ``H⁻¹``. Under ``guard="pairs"`` a weight that would overflow with its
    neighbour is held back.
    """
    top = WEIGHT_MAX if guard != "full" else PAIR_MAX // 2
    rows_OK = as_rows(w, start.axis).astype(np.float64)
    groups = len(moments_GKK)
    per_group = len(rows_OK) // groups
    levels_OK = np.empty(rows_OK.shape, np.int8)
    for g in range(groups):
        part = slice(g * per_group, (g + 1) * per_group)
        levels_OK[part] = _round_group(
            rows_OK[part], start.scale_O[part].astype(np.float64), moments_GKK[g], top, guard == "pairs"
        )
    return QuantizedWeight(from_rows(levels_OK, w.shape, start.axis), start.scale_O, start.axis)


def _round_group(
    rows_OK: NDArray[np.float64],
    scale_O: NDArray[np.float64],
    h_KK: NDArray[np.float64],
    top: int,
    pairs: bool,
) -> NDArray[np.int8]:
    size = len(h_KK)
    # A hundredth of the mean moment on the diagonal keeps rare inputs from taking wild corrections.
    damped = h_KK + np.eye(size) * max(0.01 * float(np.trace(h_KK)) / size, 1e-12)

    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest = rows_OK.copy()
    levels = np.zeros(rest.shape, np.float64)
    for k in range(size):
        low, high = np.full(len(rest), -float(top)), np.full(len(rest), float(top))
        if pairs and k % 2:
            low, high = (
                np.maximum(low, -PAIR_MAX - levels[:, k - 1]),
                np.minimum(high, PAIR_MAX - levels[:, k - 1]),
            )
        levels[:, k] = np.clip(np.rint(rest[:, k] / scale_O), low, high)
        error = (rest[:, k] - levels[:, k] * scale_O) / upper[k, k]
        rest[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
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
