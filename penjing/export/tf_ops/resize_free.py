"""Resizing images whose size the caller of the file chooses: the graph computes positions and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from penjing.export.onnx_resize import coordinate_rule
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node
from penjing.export.tf_ops.value import Tensor, Value

_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda at: tf.math.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: tf.math.floor(at + 0.5),
    "floor": lambda at: tf.math.floor(at),
    "ceil": lambda at: tf.math.ceil(at),
}


def resize_free(node: Node) -> Value:
    """A Resize or Upsample node of an image some of whose sizes are free.

    Raises:
        ExportError: for antialiasing, whose taps are as many as the sizes say.
    """
    value, rank = node.value(), node.rank()
    if node.attr("antialias", 0) or node.attr("exclude_outside", 0):
        raise node.error("antialiasing and excluded borders need images of a fixed size")
    mode, rule = node.text("mode", "nearest"), coordinate_rule(node)
    x = value.last()
    factors, wished = _factors(node, rank), _wished(node, rank)
    sizes = [_size(x, axis, factors[axis + 1], wished[axis + 1]) for axis in range(1, rank - 1)]
    whole = all(factor is None or factor.is_integer() for factor in factors[2:])
    if rank == 4 and mode == "linear" and rule == "half_pixel" and whole:
        return Value(last=tf.image.resize(x, tf.stack(sizes), method="bilinear"))
    if rank == 4 and mode == "linear" and rule == "align_corners":
        return Value(last=tf.compat.v1.image.resize_bilinear(x, tf.stack(sizes), align_corners=True))
    for axis, out in enumerate(sizes, 1):
        if factors[axis + 1] != 1.0:
            x = _along(node, x, axis, out, factors[axis + 1], mode, rule)
    return Value(last=x)


def _factors(node: Node, rank: int) -> list[float | None]:
    """Of each dimension in ONNX order; None where its size is given instead."""
    if node.op == "Upsample" or node.opset < 11:
        given = node.attr("scales") if "scales" in node.attributes else node.static(1, "scales")
        return [float(s) for s in np.asarray(given)]
    found: list[float | None] = [1.0] * rank
    axes = [int(a) % rank for a in node.attr("axes", range(rank))]
    given = [None] * len(axes) if node.has(3) else node.static(2, "scales")
    for axis, factor in zip(axes, given, strict=True):
        found[axis] = None if factor is None else float(factor)
    return found


def _wished(node: Node, rank: int) -> list[Any]:
    """The size of each dimension in ONNX order, an int or a scalar tensor; None where a factor gives it."""
    found: list[Any] = [None] * rank
    if node.has(3) and node.op != "Upsample" and node.opset >= 11:
        value = node.value(3)
        axes = [int(a) % rank for a in node.attr("axes", range(rank))]
        known = value.parts if value.const is None else [int(v) for v in value.const]
        for i, axis in enumerate(axes):
            found[axis] = value.plain()[i] if known is None else known[i]
    return found


def _size(x: Tensor, axis: int, factor: float | None, wished: Any) -> Tensor:
    if factor is None:
        return tf.cast(wished, tf.int32)
    n = tf.shape(x)[axis]
    if factor.is_integer():
        return n * int(factor)
    return tf.cast(tf.math.floor(tf.cast(n, tf.float32) * factor), tf.int32)


def _along(
    node: Node, x: Tensor, axis: int, out: Tensor, factor: float | None, mode: str, rule: str
) -> Tensor:
    n = tf.shape(x)[axis]
    nearest = node.text("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    if mode == "nearest" and (rule, nearest) == ("asymmetric", "floor") and factor is None:
        return tf.gather(x, (tf.range(out) * n) // out, axis=axis)  # in whole numbers, which do not round
    at = _positions(rule, out, n, factor)
    if mode == "nearest":
        return tf.gather(x, _inside(_NEAREST[nearest](at), n), axis=axis)
    low = tf.math.floor(at)
    wide = [-1 if i == axis else 1 for i in range(x.shape.rank)]
    total = 0.0
    for tap, weight in _taps(mode, at - low, float(node.attr("cubic_coeff_a", -0.75))):
        part = tf.gather(x, _inside(low + tap, n), axis=axis)
        total += part * tf.cast(tf.reshape(weight, wide), x.dtype)
    return total


def _inside(at: Tensor, n: Tensor) -> Tensor:
    return tf.clip_by_value(tf.cast(at, tf.int32), 0, n - 1)


def _positions(rule: str, out: Tensor, n: Tensor, factor: float | None) -> Tensor:
    """As `penjing.export.onnx_resize.source_positions`."""
    at, given, made = (tf.cast(value, tf.float32) for value in (tf.range(out), n, out))
    if rule == "align_corners":
        return at * (given - 1.0) / tf.maximum(made - 1.0, 1.0)
    scale = made / given if factor is None else factor
    if rule == "asymmetric":
        return at / scale
    centred = (at + 0.5) / scale - 0.5
    if rule == "half_pixel_symmetric":
        return given / 2.0 * (1.0 - made / (scale * given)) + centred
    return tf.where(made > 1.0, centred, 0.0) if rule == "pytorch_half_pixel" else centred


def _taps(mode: str, ahead: Tensor, a: float) -> list[tuple[float, Tensor]]:
    """Neighbours by their distance from the one below, and their weights."""
    if mode == "linear":
        return [(0.0, 1.0 - ahead), (1.0, ahead)]

    def near(d: Tensor) -> Tensor:  # Keys 1981, cubic convolution
        return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a

    behind = 1.0 - ahead
    return [
        (-1.0, far(1.0 + ahead)),
        (0.0, near(ahead)),
        (1.0, near(behind)),
        (2.0, far(1.0 + behind)),
    ]
