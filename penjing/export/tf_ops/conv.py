"""Convolutions, in one, two or three dimensions; weights are stored in TensorFlow's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from penjing.export.onnx_node import spatial_pads, transpose_crops
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op
from penjing.export.tf_ops.value import Tensor, Value


def same_padding(
    pads: Sequence[tuple[int, int]],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    sizes: Sequence[int | None],
) -> bool:
    """Whether TensorFlow's ``SAME`` puts exactly these zeros."""
    for (before, after), k, s, d, size in zip(pads, kernel, strides, dilations, sizes, strict=True):
        span = (k - 1) * d + 1
        if s == 1:
            total = span - 1
        elif size is not None:
            total = max((-(-size // s) - 1) * s + span - size, 0)
        else:
            return False
        if (before, after) != (total // 2, total - total // 2):
            return False
    return True


def pad_last(x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros around the spatial dimensions of a channels-last tensor."""
    return tf.pad(x, [(0, 0), *pads, (0, 0)]) if any(b or a for b, a in pads) else x


@op("Conv")
def _conv(node: Node) -> Value:
    value, weight = node.value(0), node.value(1)
    w_shape = weight.shape
    if w_shape is None or None in w_shape:
        raise node.error("the size of its kernel is unknown")
    dims = [int(d) for d in w_shape if d is not None]
    count = len(dims) - 2
    kernel, group = dims[2:], int(node.attr("group", 1))
    strides = [int(s) for s in node.attr("strides", [1] * count)]
    dilations = [int(d) for d in node.attr("dilations", [1] * count)]
    sizes = (value.shape or [None] * (count + 2))[2:]
    pads = spatial_pads(node, kernel, strides, dilations, sizes)
    x = value.last()
    padding = "SAME" if same_padding(pads, kernel, strides, dilations, sizes) else "VALID"
    x = x if padding == "SAME" else pad_last(x, pads)
    if count == 1:
        # One dimension is two with a height of one: depthwise kernels exist for two only.
        out = tf.squeeze(
            _conv_nd(node, tf.expand_dims(x, 1), weight, [1, *strides], padding, [1, *dilations], group), 1
        )
    elif count in (2, 3):
        out = _conv_nd(node, x, weight, strides, padding, dilations, group)
    else:
        raise node.error(f"it has {count} spatial dimensions")
    if node.has(2):
        out = plus_bias(out, node.value(2), group)
    return Value(last=out)


def plus_bias(out: Tensor, bias: Value, group: int) -> Tensor:
    """A convolution's result and its bias."""
    if group == 1 or (bias.const is None and bias.quantized is None):
        return tf.nn.bias_add(out, bias.plain())
    # TensorFlow's graph optimizer fuses a convolution with an addition of a vector, and the fused CPU kernel
    # refuses groups; a subtraction is left alone.
    return out - bias.mapped("negated", np.negative)


def _conv_nd(
    node: Node, x: Tensor, weight: Value, strides: list[int], padding: str, dilations: list[int], group: int
) -> Tensor:
    channels = x.shape[-1]
    if channels is None:
        raise node.error("the number of its input channels is unknown")
    if (
        group > 1
        and group == channels
        and len(strides) == 2
        and len(set(strides)) == 1
        and (strides[0] == 1 or set(dilations) == {1})
    ):
        kernel = _kernel(weight, "depthwise", group)
        return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding, dilations=dilations)
    kernel = _kernel(weight, "conv", group)
    if len(strides) == 2:
        return tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations)
    if group == 1:
        return _conv3d(x, kernel, strides, padding, dilations)
    parts = zip(tf.split(x, group, -1), tf.split(kernel, group, -1), strict=True)
    return tf.concat([_conv3d(part, k, strides, padding, dilations) for part, k in parts], -1)


def _conv3d(x: Tensor, kernel: Tensor, strides: list[int], padding: str, dilations: list[int]) -> Tensor:
    return tf.nn.conv3d(x, kernel, [1, *strides, 1], padding, dilations=[1, *dilations, 1])


def _kernel(weight: Value, kind: str, group: int) -> Tensor:
    """Weights O, I/group, spatial… → spatial…, I/group, O; depthwise: height, width, channel, multiplier."""

    def change(w: np.ndarray) -> np.ndarray:
        w = w[:, :, None] if w.ndim == 3 else w
        if kind == "depthwise":
            c_m = w.reshape(group, w.shape[0] // group, *w.shape[2:]) if w.shape[0] > 1 else w
            return np.ascontiguousarray(c_m.transpose(*range(2, w.ndim), 0, 1))
        return np.ascontiguousarray(w.transpose(*range(2, w.ndim), 1, 0))

    if weight.const is not None or weight.quantized is not None:
        return weight.mapped(kind, change)
    w = weight.plain()
    w = w[:, :, tf.newaxis] if w.shape.rank == 3 else w
    if kind == "depthwise":
        w = tf.reshape(w, [group, -1, *w.shape.as_list()[2:]])
        return tf.transpose(w, [*range(2, w.shape.rank), 0, 1])
    return tf.transpose(w, [*range(2, w.shape.rank), 1, 0])


@op("ConvTranspose")
def _conv_transpose(node: Node) -> Value:
    value, weight = node.value(0), node.value(1)
    if weight.const is None:
        raise node.error("its kernel is computed from the model's inputs")
    w = weight.const
    count, group = w.ndim - 2, int(node.attr("group", 1))
    if count > 3:
        raise node.error(f"it has {count} spatial dimensions")
    strides = [int(s) for s in node.attr("strides", [1] * count)]
    dilations = [int(d) for d in node.attr("dilations", [1] * count)]
    extra = [int(e) for e in node.attr("output_padding", [0] * count)]
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    x = value.last()
    sizes = [tf.shape(x)[1 + i] if x.shape[1 + i] is None else int(x.shape[1 + i]) for i in range(count)]
    full = [(n - 1) * s + span for n, s, span in zip(sizes, strides, spans, strict=True)]
    crops = transpose_crops(node, full, extra, sizes, strides)
    # A dilated kernel is one with zeros in between; the transposed op has no dilation on the CPU.
    wide = np.zeros((*w.shape[:2], *spans), w.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = w
    parts = zip(tf.split(x, group, -1), np.split(wide, group, 0), strict=True)
    outs = [_transposed(node, part, kernel, i, strides, full) for i, (part, kernel) in enumerate(parts)]
    out = outs[0] if group == 1 else tf.concat(outs, -1)
    out = tf.pad(
        out, [(0, 0), *((0, max(e - after, 0)) for (_, after), e in zip(crops, extra, strict=True)), (0, 0)]
    )
    picks = [slice(b, min(e - a, 0) or None) for (b, a), e in zip(crops, extra, strict=True)]
    out = out[(slice(None), *picks, slice(None))]
    return Value(last=tf.nn.bias_add(out, node.x(2)) if node.has(2) else out)


def _transposed(
    node: Node, x: Tensor, kernel: np.ndarray, index: int, strides: list[int], full: list[Any]
) -> Tensor:
    """One group: kernel I, O/group, spatial… → spatial…, O/group, I."""
    k = np.ascontiguousarray(kernel.transpose(*range(2, kernel.ndim), 1, 0))
    key = f"{node.value(1).key}/transposed{index}"
    stored = tf.constant(k) if node.weights is None else node.weights.tensor(key, k)
    shape = [tf.shape(x)[0], *full, k.shape[-2]]
    if len(full) == 3:
        return tf.nn.conv3d_transpose(x, stored, tf.stack(shape), strides, "VALID")
    if len(full) == 2:
        return tf.nn.conv2d_transpose(x, stored, tf.stack(shape), strides, "VALID")
    out = tf.nn.conv2d_transpose(
        tf.expand_dims(x, 1), stored[tf.newaxis], tf.stack([shape[0], 1, *shape[1:]]), [1, *strides], "VALID"
    )
    return tf.squeeze(out, 1)
