"""Normalisations and softmax."""

from __future__ import annotations

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.few import in_few
from penjing.export.tf_ops.node import Node, held_axis, op, plain, same_order
from penjing.export.tf_ops.value import Tensor, Value


@op("BatchNormalization")
def _batch_norm(node: Node) -> Value:
    value = node.value()
    scale, shift, mean, variance = (node.value(i) for i in range(1, 5))
    epsilon = float(node.attr("epsilon", 1e-5))
    if all(v.const is not None for v in (scale, shift, mean, variance)):
        parts = [np.asarray(v.const, np.float64) for v in (scale, shift, mean, variance)]
        factor = parts[0] / np.sqrt(parts[3] + epsilon)
        offset = parts[1] - parts[2] * factor
        # exporters merge equal arrays: norms may share some of the four and differ in the others
        key = "/".join([*(v.key for v in (scale, shift, mean, variance)), f"{epsilon:g}"])
        a = _stored(node, key + "/factor", factor)
        b = _stored(node, key + "/offset", offset)
    else:
        a = scale.plain() * tf.math.rsqrt(variance.plain() + epsilon)
        b = shift.plain() - mean.plain() * a
    if value.rank == 2:
        return plain(value.plain() * a + b)
    return Value(last=value.last() * a + b)


def _stored(node: Node, key: str, array: np.ndarray) -> Tensor:
    array = array.astype(np.float32)
    return tf.constant(array) if node.weights is None else node.weights.tensor(key, array)


@op("InstanceNormalization")
def _instance_norm(node: Node) -> Value:
    x = node.value().last()
    axes = list(range(1, x.shape.rank - 1))
    out = _standardised(x, axes, float(node.attr("epsilon", 1e-5)))
    return Value(last=out * node.x(1) + node.x(2))


@op("MeanVarianceNormalization")
def _mean_variance(node: Node) -> Value:
    axes = [int(a) for a in node.attr("axes", [0, 2, 3])]
    return plain(_standardised(node.x(0), axes, 0.0))


@op("GroupNormalization")
def _group_norm(node: Node) -> Value:
    x = node.value().plain()
    groups = int(node.attr("num_groups"))
    shape = x.shape.as_list()
    if None in shape[1:]:
        raise node.error("it needs fixed channels and image size")
    grouped = tf.reshape(x, [-1, groups, shape[1] // groups * int(np.prod(shape[2:]))])
    out = tf.reshape(_standardised(grouped, [2], float(node.attr("epsilon", 1e-5))), [-1, *shape[1:]])
    scale, bias = node.x(1), node.x(2)
    if node.opset < 21:  # one scale and bias a group, not a channel
        scale, bias = (tf.repeat(t, shape[1] // groups) for t in (scale, bias))
    wide = [1, shape[1], *[1] * (len(shape) - 2)]
    return plain(out * tf.reshape(scale, wide) + tf.reshape(bias, wide))


@op("LayerNormalization", "RMSNormalization")
def _layer_norm(node: Node) -> Value | list[Value]:
    x = node.x(0)
    axes = list(range(node.axis(-1), node.rank()))
    epsilon = float(node.attr("epsilon", 1e-5))
    if node.num_outputs > 1:
        raise node.error("its mean or deviation is used as well")
    normalised = _scaled if node.op == "RMSNormalization" else _standardised
    out = in_few(lambda tensors, at: normalised(tensors[0], at, epsilon), [x], axes)
    out = out * node.x(1) if node.has(1) else out
    return plain(out + node.x(2) if node.has(2) else out)


def _standardised(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    return _scaled(x - tf.reduce_mean(x, axes, keepdims=True), axes, epsilon)


def _scaled(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    return x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axes, keepdims=True) + epsilon)


@op("LpNormalization")
def _lp_norm(node: Node) -> Value:
    value = node.value()
    axis, x = held_axis(value, node.axis(-1)), value.tensor()
    if int(node.attr("p", 2)) == 1:
        size = tf.reduce_sum(tf.abs(x), axis, keepdims=True)
    else:
        size = tf.sqrt(tf.reduce_sum(tf.square(x), axis, keepdims=True))
    return same_order(value, tf.math.divide_no_nan(x, size))


@op("LRN")
def _lrn(node: Node) -> Value:
    size = int(node.attr("size"))
    if size % 2 == 0:
        raise node.error("its size is even")
    x = node.value().last()
    alpha = float(node.attr("alpha", 1e-4)) / size
    out = tf.nn.local_response_normalization(
        x, size // 2, bias=float(node.attr("bias", 1.0)), alpha=alpha, beta=float(node.attr("beta", 0.75))
    )
    return Value(last=out)


@op("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Value:
    function = tf.nn.softmax if node.op == "Softmax" else tf.nn.log_softmax
    value = node.value()
    if node.opset >= 13:
        axis = held_axis(value, node.axis(-1))
        return same_order(
            value, in_few(lambda ts, axes: function(ts[0], axis=axes[0]), [value.tensor()], [axis])
        )
    # Before opset 13 everything from ``axis`` on was one dimension.
    x, axis = value.plain(), node.axis(1)
    if axis == x.shape.rank - 1:
        return plain(function(x, axis=-1))
    lead = tf.shape(x)[:axis]
    flat = tf.reshape(x, tf.concat([lead, [-1]], 0))
    return plain(tf.reshape(function(flat, axis=-1), tf.shape(x)))


@op("Hardmax")
def _hardmax(node: Node) -> Value:
    value = node.value()
    axis, x = held_axis(value, node.axis(-1)), value.tensor()
    best = tf.argmax(x, axis)
    return same_order(value, tf.one_hot(best, x.shape[axis], axis=axis, dtype=x.dtype))
