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

from penjing.errors import QuantizeError
from penjing.quantize.calibrate import Visit
from penjing.quantize.descent import descend
from penjing.quantize.graph import int_attribute, ints_attribute, layer_name, name_of, weight_of
from penjing.quantize.scheme import WEIGHT_MAX
from penjing.quantize.weights import Guard, QuantizedWeight, as_rows, bounds_beside, from_rows, highest

MAX_INPUTS = 4608
"""Layers with more inputs per output are rounded to nearest: their moments would take over 170 MB each."""

_SAMPLES = 128
_ROWS_PER_SAMPLE, _LEAST_ROWS, _INPUTS_PER_ROW = 32, 4, 8
_LINEAR_ROWS_PER_SAMPLE = 128
_DAMPING = 0.03
_NOTHING = 1e-80
_SWEEPS = 4
"""Visits of all weights where rounding is refined by `penjing.quantize.descent`."""
_COLUMNS = 64
_ROWS_AT_ONCE = 256


class Moments:
    """``E[xxᵀ]`` of layers' input patches, from a stream: ``GKK`` (G groups), in the runtime's order.

    Of each of the first 128 samples up to 32 positions of a convolution are used, drawn once per layer and
    sample; fewer for layers of fewer inputs (an eighth of their number, at least 4). Linear layers use up to
    128: a transformer's inputs are wide, and many of its tokens are padding that says little.

    Args:
        layers: The layers by output name; those of over `MAX_INPUTS`, and convolutions whose padding is not
            written out, are left aside.
        seed: Of the draw.
        positions: Positions of each sample, where the rule above is not wanted.
    """

    def __init__(self, layers: Mapping[str, ir.Node], seed: int = 0, *, positions: int | None = None) -> None:
        self._seed, self._positions = seed, positions
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._waiting: dict[str, list[NDArray[np.float32]]] = {}
        self._rows: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._sources: dict[str, list[tuple[str, ir.Node]]] = {}
        self._names = {out: layer_name(node) for out, node in layers.items()}
        for out, node in layers.items():
            w = weight_of(node)
            size = int(np.prod(w.shape[1:])) if node.op_type == "Conv" else w.size // _num_outputs(node, w)
            if size <= MAX_INPUTS and w.ndim in (2, 4) and "auto_pad" not in node.attributes:
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
            draw = np.random.default_rng([self._seed, index, seen])
            rows_GRK = _patches(node, x, draw, self._positions)
            waiting = self._waiting.setdefault(out, [])
            waiting.append(rows_GRK)
            if sum(rows.shape[1] for rows in waiting) >= _ROWS_AT_ONCE:
                self._flush(out)

    def _flush(self, out: str) -> None:
        """Add the rows that wait: many at once, as each addition touches the whole moment."""
        waiting = self._waiting.pop(out, [])
        if waiting:
            rows_GRK = np.concatenate(waiting, axis=1)
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                moment = np.matmul(rows_GRK.transpose(0, 2, 1), rows_GRK).astype(np.float64)
            if not np.isfinite(moment).all():
                raise QuantizeError(
                    f"its inputs reach {np.abs(rows_GRK).max():.3g} on the calibration data, whose square "
                    "float32 does not hold",
                    layer=self._names[out],
                    remedy="Remove the sample or correct the preprocessing",
                )
            self._sums[out] = self._sums[out] + moment if out in self._sums else moment
            self._rows[out] = self._rows.get(out, 0) + rows_GRK.shape[1]

    def means(self) -> dict[str, NDArray[np.float64]]:
        """The moments by output name."""
        for out in list(self._waiting):
            self._flush(out)
        return {out: moment / self._rows[out] for out, moment in self._sums.items()}


def second_order(
    w: NDArray[np.float32],
    start: QuantizedWeight,
    moments_GKK: NDArray[np.float64],
    *,
    guard: Guard,
    top: int = WEIGHT_MAX,
    refine: bool = False,
) -> QuantizedWeight:
    """Round ``w`` with the scales of ``start`` so that outputs change least on inputs with these moments.

    Columns are rounded one by one; the error of each moves the rest by ``−e·U[k, k+1:]/U[k, k]`` with ``U``
    the upper Cholesky factor of ``H⁻¹``. Under ``guard="pairs"`` a weight that would overflow with its
    neighbour is held back. ``refine`` follows with coordinate descent.
    """
    rows_OK = as_rows(w, start.axis).astype(np.float64)
    groups, size = len(moments_GKK), rows_OK.shape[1]
    scale_GOK = np.broadcast_to(start.scale_O.astype(np.float64)[:, None], rows_OK.shape)
    shape = (groups, -1, size)
    levels_GOK = _round(rows_OK.reshape(shape), scale_GOK.reshape(shape), moments_GKK, guard, top, refine)
    levels_OK = levels_GOK.reshape(rows_OK.shape)
    return QuantizedWeight(from_rows(levels_OK, w.shape, start.axis), start.scale_O, start.axis)


def second_order_blocks(
    w_NK: NDArray[np.float32],
    scale_NK: NDArray[np.float32],
    moments_GKK: NDArray[np.float64],
    guard: Guard,
    top: int,
    refine: bool = False,
) -> NDArray[np.int8]:
    """`second_order` for a linear weight with a step for each entry; gives the levels."""
    rows, scales = w_NK[None].astype(np.float64), scale_NK[None].astype(np.float64)
    return np.asarray(_round(rows, scales, moments_GKK, guard, top, refine)[0], np.int8)


def _round(
    rows_GOK: NDArray[np.float64],
    scale_GOK: NDArray[np.float64],
    h_GKK: NDArray[np.float64],
    guard: Guard,
    top: int,
    refine: bool,
) -> NDArray[np.int8]:
    size, top = h_GKK.shape[-1], highest(guard, top)
    # A share of the mean moment on the diagonal keeps rare inputs from taking wild corrections.
    mean_G = np.trace(h_GKK, axis1=1, axis2=2) / size
    damp_G = np.where(mean_G > _NOTHING, _DAMPING * mean_G, 1.0)  # of inputs of any size, but not of none
    h_GKK = h_GKK + np.eye(size) * damp_G[:, None, None]
    upper_GKK = _inverse_factor(h_GKK)
    # Inputs before outputs, so that what one step touches lies together.
    rest_GKO = np.ascontiguousarray(rows_GOK.transpose(0, 2, 1))
    scale_GKO = scale_GOK.transpose(0, 2, 1)
    levels_GKO = np.zeros(rest_GKO.shape, np.float64)
    for first in range(0, size, _COLUMNS):
        last = min(first + _COLUMNS, size)
        errors_GKO = np.zeros((len(h_GKK), last - first, rest_GKO.shape[2]))
        for k in range(first, last):
            now_GO, scale_GO = rest_GKO[:, k], scale_GKO[:, k]
            low, high = bounds_beside(levels_GKO, k, guard, top)  # an unrounded neighbour is 0 so far
            level_GO = np.clip(np.rint(now_GO / scale_GO), low, high)
            levels_GKO[:, k] = level_GO
            error_GO = (now_GO - level_GO * scale_GO) / upper_GKK[:, k, k, None]
            errors_GKO[:, k - first] = error_GO
            rest_GKO[:, k + 1 : last] -= upper_GKK[:, k, k + 1 : last, None] * error_GO[:, None]
        # The columns of a block change one another at once, those after it together (lazy batch updates).
        rest_GKO[:, last:] -= upper_GKK[:, first:last, last:].transpose(0, 2, 1) @ errors_GKO
    if refine:
        rows_GKO = rows_GOK.transpose(0, 2, 1)
        descend(levels_GKO, rows_GKO, scale_GKO, h_GKK, guard=guard, top=top, sweeps=_SWEEPS)
    return np.ascontiguousarray(levels_GKO.transpose(0, 2, 1)).astype(np.int8)


def _inverse_factor(h_GKK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper U with ``UᵀU = H⁻¹``, without forming the inverse.

    With the rows and columns of H in reverse, ``PHP = LLᵀ``; then ``R = PLP`` is upper, ``H = RRᵀ`` and
    ``U = R⁻¹``: two triangular steps instead of an inversion and a factorisation.
    """
    reversed_GKK = torch.from_numpy(h_GKK[:, ::-1, ::-1].copy())
    root_GKK = torch.linalg.cholesky(reversed_GKK).flip(1, 2)
    eye = torch.eye(root_GKK.shape[-1], dtype=root_GKK.dtype).expand_as(root_GKK)
    return np.asarray(torch.linalg.solve_triangular(root_GKK, eye, upper=True).numpy())


def _num_outputs(node: ir.Node, w: NDArray[np.float32]) -> int:
    return int(w.shape[0 if int_attribute(node, "transB", 0) else 1])


def _patches(
    node: ir.Node, x: NDArray[Any], draw: np.random.Generator, positions: int | None = None
) -> NDArray[np.float32]:
    """Input patches ``GRK`` in the order kernel positions, input channels."""
    if node.op_type != "Conv":
        rows = x.reshape(-1, x.shape[-1])
        most = (positions or _LINEAR_ROWS_PER_SAMPLE) * len(x)
        return rows[None] if len(rows) <= most else rows[None, draw.choice(len(rows), most, replace=False)]
    kernel = ints_attribute(node, "kernel_shape", list(weight_of(node).shape[2:]))
    pads = ints_attribute(node, "pads", [0, 0, 0, 0])
    strides, dilations = ints_attribute(node, "strides", [1, 1]), ints_attribute(node, "dilations", [1, 1])
    groups = int_attribute(node, "group", 1)
    padded = x
    if any(pads):
        padded = torch.nn.functional.pad(torch.from_numpy(x), (pads[1], pads[3], pads[0], pads[2])).numpy()
    height = (padded.shape[2] - dilations[0] * (kernel[0] - 1) - 1) // strides[0] + 1
    width = (padded.shape[3] - dilations[1] * (kernel[1] - 1) - 1) // strides[1] + 1
    size = int(np.prod(weight_of(node).shape[1:]))
    most = min(positions or min(_ROWS_PER_SAMPLE, max(_LEAST_ROWS, size // _INPUTS_PER_ROW)), height * width)
    chosen = draw.choice(height * width, most, replace=False)
    top, left = (chosen // width) * strides[0], (chosen % width) * strides[1]
    flat = padded.reshape(*padded.shape[:2], -1)
    taps = [
        np.take(flat, (top + i * dilations[0]) * padded.shape[3] + left + j * dilations[1], axis=2)
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    patches_TNCR = np.stack(taps)
    t, n, c, r = patches_TNCR.shape
    grouped = patches_TNCR.reshape(t, n, groups, c // groups, r)
    return np.ascontiguousarray(grouped.transpose(2, 1, 4, 0, 3)).reshape(groups, n * r, t * (c // groups))
