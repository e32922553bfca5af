"""Resizing images: torch's interpolation where it is the same function, ONNX's coordinate rules otherwise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.export.onnx_resize import (
    coordinate_rule,
    interpolation_matrix,
    nearest_positions,
    scales_and_sizes,
    source_positions,
)
from penjing.models.onnx_ops.node import Node, Value, array_tensor, op

_MODES = {
    ("linear", 3): "linear",
    ("linear", 4): "bilinear",
    ("linear", 5): "trilinear",
    ("cubic", 4): "bicubic",
}


@op("Resize", "Upsample")
def _resize(node: Node) -> Value:
    x = node.x()
    if x.ndim < 3:
        raise node.error("it resizes something else than an image")
    shape = [1, 1, *(int(n) for n in x.shape[2:])]
    scales, sizes = scales_and_sizes(node, shape, lambda: [1, 1, *_spatial_sizes(node, x)])
    mode, rule = node.text("mode", "nearest"), coordinate_rule(node)
    if rule == "tf_crop_and_resize":
        raise node.error(f"the coordinate rule {rule!r}")
    exact = all(n * s == out for n, s, out in zip(shape[2:], scales[2:], sizes[2:], strict=True))
    native = _native(node, mode, rule, exact, x.ndim, sizes)
    if native is not None:
        return F.interpolate(x, sizes[2:], **native)
    for axis in range(2, x.ndim):
        n, out, scale = shape[axis], sizes[axis], scales[axis]
        if n == out and scale == 1.0:
            continue
        at = source_positions(rule, out, n, scale)
        if mode == "nearest":
            x = x.index_select(axis, torch.tensor(nearest_positions(node, at, n), device=x.device))
        else:
            x = _along_axis(x, array_tensor(interpolation_matrix(node, mode, at, n, scale)).to(x), axis)
    return x


def _spatial_sizes(node: Node, x: Tensor) -> list[int]:
    sizes = node.static(3, "sizes")
    return [int(size) for size in sizes[-(x.ndim - 2) :]]


def _native(
    node: Node, mode: str, rule: str, exact: bool, rank: int, sizes: list[int]
) -> dict[str, Any] | None:
    """Options of ``F.interpolate`` that compute the same; None where there are none."""
    if node.attr("exclude_outside", 0) or node.attr("axes") is not None:
        return None
    if mode == "nearest":
        rounding = node.text("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
        return {"mode": "nearest"} if exact and rule == "asymmetric" and rounding == "floor" else None
    if node.attr("antialias", 0) or (mode, rank) not in _MODES or min(sizes[2:]) < 2:
        return None
    if mode == "cubic" and abs(float(node.attr("cubic_coeff_a", -0.75)) + 0.75) > 1e-6:
        return None
    if rule == "align_corners":
        return {"mode": _MODES[mode, rank], "align_corners": True}
    same = rule in ("half_pixel", "pytorch_half_pixel") and exact
    return {"mode": _MODES[mode, rank], "align_corners": False} if same else None


def _along_axis(x: Tensor, matrix_OI: Tensor, axis: int) -> Tensor:
    return torch.matmul(x.movedim(axis, -1), matrix_OI.t()).movedim(-1, axis)


@op("GridSample")
def _grid_sample(node: Node) -> Value:
    mode = node.text("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    edges, corners = node.text("padding_mode", "zeros"), bool(node.attr("align_corners", 0))
    return F.grid_sample(node.x(0), node.x(1), mode, edges, corners)
