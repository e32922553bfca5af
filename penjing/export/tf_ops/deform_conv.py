"""Convolutions that read where an offset says (Dai et al. 2017; with masks, Zhu et al. 2019)."""

from __future__ import annotations

import numpy as np

from penjing.export.onnx_node import spatial_pads
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.conv import plus_bias
from penjing.export.tf_ops.grid_sample import linear_taps, mixed
from penjing.export.tf_ops.node import Node, op
from penjing.export.tf_ops.value import Value


@op("DeformConv")
def _deform_conv(node: Node) -> Value:
    """``[N, H, W, C]`` at the places that each position's window looks at, then a kernel over each window."""
    value, weight, offset = node.value(0), node.value(1), node.value(2).last()
    if weight.const is None or value.rank != 4 or None in offset.shape[1:] or None in value.last().shape[1:]:
        raise node.error("its image has no fixed size, or its kernel is computed")
    x = value.last()
    height, width, channels = x.shape[1:]
    rows, columns = offset.shape[1:3]
    out_channels, depth, *kernel = weight.const.shape
    strides = [int(s) for s in node.attr("strides", [1, 1])]
    dilations = [int(d) for d in node.attr("dilations", [1, 1])]
    pads = spatial_pads(node, kernel, strides, dilations, [height, width])
    sets, taps, places = int(node.attr("offset_group", 1)), kernel[0] * kernel[1], rows * columns

    before = [pad for pad, _ in pads]
    corner = np.indices((rows, columns)).reshape(2, places).T * strides - before
    inside = np.indices(kernel).reshape(2, taps).T * dilations
    start = corner[:, None] + np.tile(inside, (sets, 1))
    at = tf.reshape(offset, [-1, places, sets * taps, 2]) + start.astype(np.float32)
    pixels = tf.reshape(x, [-1, height, width, sets, channels // sets])
    own = np.repeat(np.arange(sets, dtype=np.int32), taps)  # each set of offsets has channels of its own
    own = tf.zeros_like(at[..., 0], tf.int32) + own
    seen = mixed(pixels, [linear_taps(at[..., i]) for i in (0, 1)], [height, width], zeros=True, then=[own])
    if node.has(4):
        seen = seen * tf.reshape(node.value(4).last(), [-1, places, sets * taps, 1])
    if sets > 1:
        seen = tf.reshape(seen, [-1, places, sets, taps, channels // sets])
        seen = tf.reshape(tf.transpose(seen, [0, 1, 3, 2, 4]), [-1, places, taps, channels])
    flat = weight.mapped(
        "deformable", lambda w: w.reshape(out_channels, depth, 1, taps).transpose(2, 3, 1, 0)
    )
    out = tf.nn.conv2d(seen, flat, 1, "VALID")
    if node.has(3):
        out = plus_bias(out, node.value(3), int(node.attr("group", 1)))
    return Value(last=tf.reshape(out, [-1, rows, columns, out_channels]))
