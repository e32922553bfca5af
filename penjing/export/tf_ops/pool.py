"""Pooling, in one, two or three dimensions, with ONNX's padding, ceiling and counting rules."""

from __future__ import annotations

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.conv import same_padding, spatial_pads
from penjing.export.tf_ops.node import Node, op
from penjing.export.tf_ops.value import Tensor, Value


class _Window:
    """Kernel, strides, dilations and pads of a pooling node; ``ceil`` is what ceil_mode reads beyond the
    pads."""

    def __init__(self, node: Node) -> None:
        self.kernel = [int(k) for k in node.attr("kernel_shape")]
        count = len(self.kernel)
        self.strides = [int(s) for s in node.attr("strides", [1] * count)]
        self.dilations = [int(d) for d in node.attr("dilations", [1] * count)]
        self.sizes = (node.value().shape or [None] * (count + 2))[2:]
        self.pads = spatial_pads(node, self.kernel, self.strides, self.dilations, self.sizes)
        self.ceil = [0] * count
        if node.attr("ceil_mode", 0):
            for i, size in enumerate(self.sizes):
                if size is None:
                    raise node.error("ceil_mode needs a fixed image size")
                self.ceil[i] = self._beyond(i, size)

    def _beyond(self, i: int, size: int) -> int:
        (before, after), stride = self.pads[i], self.strides[i]
        span = (self.kernel[i] - 1) * self.dilations[i] + 1
        steps = -(-(size + before + after - span) // stride)
        if steps * stride >= size + before:  # a window must start inside the image or its left padding
            steps -= 1
        return max(steps * stride + span - (size + before + after), 0)

    @property
    def all_pads(self) -> list[tuple[int, int]]:
        return [(b, a + c) for (b, a), c in zip(self.pads, self.ceil, strict=True)]

    def is_same(self) -> bool:
        return same_padding(self.all_pads, self.kernel, self.strides, self.dilations, self.sizes)


@op("MaxPool")
def _max_pool(node: Node) -> Value:
    if node.num_outputs > 1:
        raise node.error("the indices of the maxima are used")
    window, value = _Window(node), node.value()
    x = value.last()
    pads = window.all_pads
    padding = "VALID"
    if window.is_same() and x.dtype.is_floating:
        padding = "SAME"
    elif any(b or a for b, a in pads):
        x = _pad_for_maximum(x, window, value.non_negative)
    out = Value(last=_pool(x, window, "MAX", padding))
    out.non_negative = value.non_negative
    return out


def _pad_for_maximum(x: Tensor, window: _Window, non_negative: bool) -> Tensor:
    pads = [(0, 0), *window.all_pads, (0, 0)]
    if non_negative:
        return tf.pad(x, pads)
    mirrored = all(
        2 * max(b, a) <= k and d == 1
        for (b, a), k, d in zip(window.pads, window.kernel, window.dilations, strict=True)
    )
    if mirrored and not any(window.ceil) and x.shape.rank <= 4:
        # A window that reaches over the edge contains what the edge mirrors, so its maximum stays; unlike −∞
        # this keeps the range of the values, which quantization needs.
        return tf.pad(x, pads, mode="SYMMETRIC")
    lowest = x.dtype.min if x.dtype.is_integer else np.float32(-np.inf)
    return tf.pad(x, pads, constant_values=tf.cast(lowest, x.dtype))


def _pool(x: Tensor, window: _Window, kind: str, padding: str) -> Tensor:
    if set(window.kernel) == {1}:  # a stride alone: TensorFlow refuses strides above the window
        return x[(slice(None), *(slice(None, None, s) for s in window.strides), slice(None))]
    if any(s > k for s, k in zip(window.strides, window.kernel, strict=True)) and len(window.kernel) == 2:
        pool = tf.nn.max_pool2d if kind == "MAX" else tf.nn.avg_pool2d
        return pool(x, window.kernel, window.strides, padding)
    return tf.nn.pool(
        x, window.kernel, kind, strides=window.strides, padding=padding, dilations=window.dilations
    )


@op("AveragePool")
def _average_pool(node: Node) -> Value:
    window = _Window(node)
    x = node.value().last()
    pads, count_pads = window.all_pads, bool(node.attr("count_include_pad", 0))
    if not any(b or a for b, a in pads):
        return Value(last=_pool(x, window, "AVG", "VALID"))
    if not count_pads and window.is_same() and not any(window.ceil) and set(window.dilations) == {1}:
        return Value(last=_pool(x, window, "AVG", "SAME"))
    out = _pool(tf.pad(x, [(0, 0), *pads, (0, 0)]), window, "AVG", "VALID")
    share = _counted(node, window, count_pads)
    return Value(last=out if share is None else out * tf.constant(share, x.dtype))


def _counted(node: Node, window: _Window, count_pads: bool) -> np.ndarray | None:
    """Kernel size over the number of elements that count, for each output position; None when it is 1
    everywhere."""
    if count_pads and not any(window.ceil):
        return None
    factor = np.ones((1,))
    for i, size in enumerate(window.sizes):
        if size is None:
            raise node.error("averages that leave out the padding need a fixed image size")
        before, after = window.pads[i]
        line = np.zeros(size + before + after + window.ceil[i])
        line[slice(0, size + before + after) if count_pads else slice(before, before + size)] = 1.0
        span = (window.kernel[i] - 1) * window.dilations[i] + 1
        starts = range(0, len(line) - span + 1, window.strides[i])
        counts = np.array([line[s : s + span : window.dilations[i]].sum() for s in starts])
        factor = factor[..., None] * (window.kernel[i] / counts)
    return factor[..., None].astype(np.float32)


@op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Value:
    x = node.value().last()
    axes = list(range(1, x.shape.rank - 1))
    reduce = tf.reduce_mean if node.op == "GlobalAveragePool" else tf.reduce_max
    return Value(last=reduce(x, axes, keepdims=True))


@op("LpPool")
def _lp_pool(node: Node) -> Value:
    window, p = _Window(node), float(node.attr("p", 2))
    x = tf.pow(tf.abs(node.value().last()), p)
    x = tf.pad(x, [(0, 0), *window.all_pads, (0, 0)])
    size = float(np.prod(window.kernel))
    return Value(last=tf.pow(_pool(x, window, "AVG", "VALID") * size, 1.0 / p))
