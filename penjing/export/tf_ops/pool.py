"""Pooling, in one, two or three dimensions, with ONNX's padding, ceiling and counting rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penjing.export.onnx_node import Window
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.conv import same_padding
from penjing.export.tf_ops.node import Node, op
from penjing.export.tf_ops.value import Tensor, Value


def _window(node: Node) -> Window:
    shape = node.value().shape
    return Window(node, None if shape is None else shape[2:])


def _is_same(window: Window) -> bool:
    return same_padding(window.all_pads, window.kernel, window.strides, window.dilations, window.sizes)


@op("MaxPool")
def _max_pool(node: Node) -> Value | list[Value]:
    if node.num_outputs > 1:
        return _maxima_and_places(node)
    window, value = _window(node), node.value()
    x = value.last()
    pads = window.all_pads
    padding = "VALID"
    if _is_same(window) and x.dtype.is_floating:
        padding = "SAME"
    elif any(b or a for b, a in pads):
        x = _pad_for_maximum(x, window, value.non_negative)
    out = Value(last=_pool(x, window, "MAX", padding))
    out.non_negative = value.non_negative
    return out


def _maxima_and_places(node: Node) -> list[Value]:
    """Largest values and their places in the whole tensor laid out flat. LiteRT has no op for it: each
    element of a window is a strided slice, and the largest of these is found among them."""
    window, x = _window(node), node.x(0)
    sizes = x.shape.as_list()[2:]
    if None in x.shape.as_list()[1:] or node.attr("storage_order", 0):
        raise node.error("the indices of the maxima are used and its image has no fixed size")
    lowest = x.dtype.min if x.dtype.is_integer else np.float32(-np.inf)
    padded = tf.pad(x, [(0, 0), (0, 0), *window.all_pads], constant_values=tf.cast(lowest, x.dtype))
    rows = [int(np.prod(sizes[i + 1 :])) for i in range(len(sizes))]  # from one to the next of a dimension
    counts = [
        (padded.shape[i + 2] - (k - 1) * d - 1) // s + 1
        for i, (k, s, d) in enumerate(zip(window.kernel, window.strides, window.dilations, strict=True))
    ]
    views, steps = [], []
    for place in np.ndindex(*window.kernel):
        starts = [p * d for p, d in zip(place, window.dilations, strict=True)]
        picks = [
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(starts, counts, window.strides, strict=True)
        ]
        views.append(padded[(slice(None), slice(None), *picks)])
        steps.append(sum(start * row for start, row in zip(starts, rows, strict=True)))
    corner = np.zeros(counts, np.int64)  # where each window begins
    for axis, row in enumerate(rows):
        begins = np.arange(counts[axis]) * window.strides[axis] - window.pads[axis][0]
        corner += (begins * row).reshape([-1 if i == axis else 1 for i in range(len(rows))])
    candidates = tf.stack(views, -1)
    inside = tf.gather(tf.constant(steps, tf.int64), tf.argmax(candidates, -1)) + corner
    planes = tf.shape(x, out_type=tf.int64)[0] * x.shape[1]
    before = tf.reshape(tf.range(planes), [-1, x.shape[1], *(1 for _ in sizes)]) * int(np.prod(sizes))
    return [Value(plain=tf.reduce_max(candidates, -1)), Value(plain=inside + before)]


def _pad_for_maximum(x: Tensor, window: Window, non_negative: bool) -> Tensor:
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


def _pool(x: Tensor, window: Window, kind: str, padding: str) -> Tensor:
    dims = list(zip(window.kernel, window.strides, window.dilations, strict=True))
    if len(dims) < 3:
        return _pool_plane(x, dims, kind, padding)
    # LiteRT pools in two dimensions: a box by its area first, then what that gave by its depth
    shape = tf.shape(x)
    planes = tf.reshape(x, tf.concat([[shape[0] * shape[1]], shape[2:]], 0))
    planes.set_shape([None, *x.shape[2:]])
    planes = _pool_plane(planes, dims[1:], kind, padding)
    area = tf.shape(planes)[1:3]
    lines = tf.reshape(planes, tf.stack([shape[0], shape[1], area[0] * area[1], shape[4]]))
    lines.set_shape([None, x.shape[1], None, x.shape[4]])
    lines = _pool_plane(lines, [dims[0], (1, 1, 1)], kind, padding)
    out = tf.reshape(lines, tf.concat([[shape[0]], tf.shape(lines)[1:2], area, shape[4:]], 0))
    out.set_shape([None, lines.shape[1], *planes.shape[1:]])
    return out


def _pool_plane(x: Tensor, dims: Sequence[tuple[int, int, int]], kind: str, padding: str) -> Tensor:
    """In one dimension or two, each with its kernel, stride and dilation."""
    kernel, strides, dilations = (list(each) for each in zip(*dims, strict=True))
    if set(kernel) == {1}:  # a stride alone: TensorFlow refuses strides above the window
        return x[(slice(None), *(slice(None, None, s) for s in strides), slice(None))]
    if any(s > k for s, k in zip(strides, kernel, strict=True)) and len(kernel) == 2:
        pool = tf.nn.max_pool2d if kind == "MAX" else tf.nn.avg_pool2d
        return pool(x, kernel, strides, padding)
    return tf.nn.pool(x, kernel, kind, strides=strides, padding=padding, dilations=dilations)


@op("AveragePool")
def _average_pool(node: Node) -> Value:
    window = _window(node)
    x = node.value().last()
    pads, count_pads = window.all_pads, bool(node.attr("count_include_pad", 0))
    if not any(b or a for b, a in pads):
        return Value(last=_pool(x, window, "AVG", "VALID"))
    if not count_pads and _is_same(window) and not any(window.ceil) and set(window.dilations) == {1}:
        return Value(last=_pool(x, window, "AVG", "SAME"))
    out = _pool(tf.pad(x, [(0, 0), *pads, (0, 0)]), window, "AVG", "VALID")
    share = window.counted(count_pads)
    return Value(last=out if share is None else out * tf.constant(share[..., None], x.dtype))


@op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Value:
    x = node.value().last()
    axes = list(range(1, x.shape.rank - 1))
    reduce = tf.reduce_mean if node.op == "GlobalAveragePool" else tf.reduce_max
    return Value(last=reduce(x, axes, keepdims=True))


@op("LpPool")
def _lp_pool(node: Node) -> Value:
    window, p = _window(node), float(node.attr("p", 2))
    x = tf.pow(tf.abs(node.value().last()), p)
    x = tf.pad(x, [(0, 0), *window.all_pads, (0, 0)])
    size = float(np.prod(window.kernel))
    return Value(last=tf.pow(_pool(x, window, "AVG", "VALID") * size, 1.0 / p))
