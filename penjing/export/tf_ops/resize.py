"""Resizing images: ONNX's coordinate rules, exactly; TensorFlow's own kernels where they are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op
from penjing.export.tf_ops.value import Tensor, Value


@op("Resize", "Upsample")
def _resize(node: Node) -> Value:
    value, rank = node.value(), node.rank()
    shape = value.shape or []
    if any(size is None for size in shape[2:]) or rank < 3:
        raise node.error("it needs images of a fixed size")
    scales, sizes = _scales_and_sizes(node, [int(s or 0) for s in shape], rank)
    mode = _text(node, "mode", "nearest")
    rule = _text(node, "coordinate_transformation_mode", "asymmetric" if node.opset < 11 else "half_pixel")
    antialias = bool(node.attr("antialias", 0))
    fast = _kernel(value, mode, rule, scales, sizes, antialias)
    if fast is not None:
        return Value(last=fast)
    x = value.last()
    for axis in range(1, rank - 1):
        n, out, scale = int(x.shape[axis]), sizes[axis + 1], scales[axis + 1]
        if n == out and scale == 1.0:
            continue
        at = _source_positions(rule, out, n, scale)
        if mode == "nearest":
            x = tf.gather(x, _nearest(node, at, n), axis=axis)
        else:
            matrix = _matrix(node, mode, at, n, scale, antialias)
            x = _along_axis(x, matrix, axis)
    return Value(last=x)


def _text(node: Node, name: str, default: str) -> str:
    given = node.attr(name, default)
    return str(given.decode() if isinstance(given, bytes) else given)


def _scales_and_sizes(node: Node, shape: list[int], rank: int) -> tuple[list[float], list[int]]:
    """Scale and output size of every axis of the tensor."""
    if node.op == "Upsample" or node.opset < 11:
        given = node.attr("scales") if "scales" in node.attributes else node.static(1, "scales")
        factors = [float(s) for s in np.asarray(given)]
        return factors, [int(np.floor(n * s)) for n, s in zip(shape, factors, strict=True)]
    axes = [int(a) % rank for a in node.attr("axes", range(rank))]
    scales, sizes = [1.0] * rank, list(shape)
    if node.has(3):
        wished = _known(node, 3)
        for axis, size in zip(axes, wished, strict=True):
            if size is not None and axis >= 2:
                sizes[axis], scales[axis] = size, size / shape[axis]
            elif axis >= 2:
                raise node.error("its size is computed from the model's inputs")
        return scales, sizes
    factors_given = node.static(2, "scales")
    for axis, factor in zip(axes, factors_given, strict=True):
        if axis >= 2:
            scales[axis], sizes[axis] = float(factor), int(np.floor(shape[axis] * float(factor)))
    return scales, sizes


def _known(node: Node, index: int) -> list[int | None]:
    value = node.value(index)
    if value.const is not None:
        return [int(v) for v in value.const]
    parts: list[Any] = value.parts or list(node.out_shapes[0] or [])
    return [part if isinstance(part, int) else None for part in parts]


def _kernel(
    value: Value, mode: str, rule: str, scales: list[float], sizes: list[int], antialias: bool
) -> Tensor | None:
    """TensorFlow's resize, where it computes the same; None otherwise."""
    shape = value.shape or []
    exact = all(int(n or 0) * s == out for n, s, out in zip(shape[2:], scales[2:], sizes[2:], strict=True))
    if mode != "linear" or antialias or len(sizes) != 4 or not (exact or rule == "align_corners"):
        return None
    if rule in ("half_pixel", "pytorch_half_pixel") and min(sizes[2:]) > 1:
        return tf.image.resize(value.last(), sizes[2:], method="bilinear")
    if rule == "align_corners" and min(sizes[2:]) > 1:
        return tf.compat.v1.image.resize_bilinear(value.last(), sizes[2:], align_corners=True)
    return None


def _source_positions(rule: str, out: int, n: int, scale: float) -> np.ndarray:
    """Where each output position lies in the input (ONNX Resize, ``coordinate_transformation_mode``)."""
    at = np.arange(out, dtype=np.float64)
    if rule == "align_corners":
        return at * (n - 1) / (out - 1) if out > 1 else np.zeros_like(at)
    if rule == "asymmetric":
        return at / scale
    if rule == "pytorch_half_pixel" and out == 1:
        return np.zeros_like(at)
    if rule == "half_pixel_symmetric":
        adjustment = out / (scale * n)
        return n / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
    return (at + 0.5) / scale - 0.5


def _nearest(node: Node, at: np.ndarray, n: int) -> np.ndarray:
    how = _text(node, "nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    # float32 positions, as the runtimes compute them: 0.5 must not become 0.50000001
    at = at.astype(np.float32).astype(np.float64)
    picks = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }[how]
    return np.asarray(picks.clip(0, n - 1), np.int64)


def _matrix(node: Node, mode: str, at: np.ndarray, n: int, scale: float, antialias: bool) -> np.ndarray:
    """Interpolation weights, output × input."""
    stretch = max(1.0 / scale, 1.0) if antialias else 1.0
    reach = int(np.ceil((2 if mode == "cubic" else 1) * stretch))
    a = float(node.attr("cubic_coeff_a", -0.75))
    matrix = np.zeros((len(at), n))
    for row, centre in enumerate(at):
        taps = np.arange(int(np.floor(centre)) - reach + 1, int(np.floor(centre)) + reach + 1)
        weights = _tap((taps - centre) / stretch, mode, a)
        inside = (taps >= 0) & (taps < n)
        if antialias or node.attr("exclude_outside", 0):
            weights = np.where(inside, weights, 0.0)
        total = weights.sum()
        np.add.at(matrix[row], taps.clip(0, n - 1), weights / total)
    return np.asarray(matrix, np.float32)


def _tap(distance: np.ndarray, mode: str, a: float) -> np.ndarray:
    d = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.maximum(1.0 - d, 0.0))
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1  # Keys 1981, cubic convolution
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))


def _along_axis(x: Tensor, matrix: np.ndarray, axis: int) -> Tensor:
    rank = x.shape.rank
    perm = [i for i in range(rank) if i != axis] + [axis]
    moved = tf.linalg.matmul(tf.transpose(x, perm), tf.constant(matrix.T))
    return tf.transpose(moved, [int(i) for i in np.argsort(perm)])


@op("GridSample")
def _grid_sample(node: Node) -> Value:
    x, grid = node.value().last(), node.x(1)
    mode = _text(node, "mode", "linear")
    if (
        mode not in ("linear", "bilinear")
        or _text(node, "padding_mode", "zeros") != "zeros"
        or x.shape.rank != 4
    ):
        raise node.error("only two-dimensional bilinear sampling with zeros outside is known")
    height, width = x.shape[1], x.shape[2]
    corners = bool(node.attr("align_corners", 0))

    def position(g: Tensor, size: int) -> Tensor:
        return (g + 1) * ((size - 1) / 2) if corners else ((g + 1) * size - 1) / 2

    px, py = position(grid[..., 0], width), position(grid[..., 1], height)
    x0, y0 = tf.floor(px), tf.floor(py)
    out = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            ix, iy = x0 + dx, y0 + dy
            weight = (1 - tf.abs(px - ix)) * (1 - tf.abs(py - iy))
            inside = (ix >= 0) & (ix <= width - 1) & (iy >= 0) & (iy <= height - 1)
            at = tf.stack(
                [
                    tf.clip_by_value(tf.cast(iy, tf.int32), 0, height - 1),
                    tf.clip_by_value(tf.cast(ix, tf.int32), 0, width - 1),
                ],
                -1,
            )
            taken = tf.gather_nd(x, at, batch_dims=1)
            out = out + taken * tf.where(inside, weight, tf.zeros_like(weight))[..., tf.newaxis]
    return Value(last=out)
