"""Resizing images: ONNX's coordinate rules, exactly; TensorFlow's own kernels where they are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from penjing.export.onnx_resize import (
    coordinate_rule,
    interpolation_matrix,
    nearest_positions,
    scales_and_sizes,
    source_positions,
)
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op
from penjing.export.tf_ops.resize_free import resize_free
from penjing.export.tf_ops.value import Tensor, Value


@op("Resize", "Upsample")
def _resize(node: Node) -> Value:
    value, rank = node.value(), node.rank()
    shape = value.shape or []
    if rank < 3:
        raise node.error("it needs images")
    if any(size is None for size in shape[2:]) or _computed(node):
        return resize_free(node)
    scales, sizes = scales_and_sizes(node, [int(s or 0) for s in shape], lambda: _known(node, 3))
    mode = node.text("mode", "nearest")
    rule = coordinate_rule(node)
    antialias = bool(node.attr("antialias", 0))
    fast = _kernel(value, mode, rule, scales, sizes, antialias)
    if fast is not None:
        return Value(last=fast)
    x = value.last()
    for axis in range(1, rank - 1):
        n, out, scale = int(x.shape[axis]), sizes[axis + 1], scales[axis + 1]
        if n == out and scale == 1.0:
            continue
        at = source_positions(rule, out, n, scale)
        if mode == "nearest":
            x = tf.gather(x, nearest_positions(node, at, n), axis=axis)
        else:
            matrix = interpolation_matrix(node, mode, at, n, scale)
            x = _along_axis(x, matrix, axis)
    return Value(last=x)


def _computed(node: Node) -> bool:
    """Whether the wished size is known to the caller of the file alone."""
    return node.op != "Upsample" and node.opset >= 11 and node.has(3) and None in _known(node, 3)[2:]


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


def _along_axis(x: Tensor, matrix: np.ndarray, axis: int) -> Tensor:
    rank = x.shape.rank
    perm = [i for i in range(rank) if i != axis] + [axis]
    moved = tf.linalg.matmul(tf.transpose(x, perm), tf.constant(matrix.T))
    return tf.transpose(moved, [int(i) for i in np.argsort(perm)])
