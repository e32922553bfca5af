"""Quantized (QDQ) graphs: the exact integers in TensorFlow arithmetic, weights kept as int8 variables."""

from __future__ import annotations

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.create import tf_type
from penjing.export.tf_ops.node import Node, held_axis, op, same_order
from penjing.export.tf_ops.value import Tensor, Value


def _along(node: Node, index: int, value: Value, axis: int) -> Tensor:
    """Scale or zero point, shaped to broadcast along its axis as ``value`` is held."""
    tensor = node.x(index)
    if tensor.shape.rank == 0 or tensor.shape.num_elements() == 1:
        return tf.reshape(tensor, [])
    if tensor.shape.rank != 1:
        raise node.error("it is quantized by blocks")
    shape = [1] * node.rank()
    shape[held_axis(value, axis)] = -1
    return tf.reshape(tensor, shape)


@op("QuantizeLinear")
def _quantize(node: Node) -> Value:
    value, axis = node.value(), int(node.attr("axis", 1))
    if node.attr("block_size", 0):
        raise node.error("it is quantized by blocks")
    dtype = node.value(2).dtype if node.has(2) else tf_type(int(node.attr("output_dtype", 0) or 2))
    if dtype not in (tf.int8, tf.uint8, tf.int16, tf.uint16):
        raise node.error(f"it quantizes to {dtype.name}")
    x = tf.round(value.tensor() / _along(node, 1, value, axis))  # round half to even, as ONNX asks
    if node.has(2):
        x = x + tf.cast(_along(node, 2, value, axis), tf.float32)
    return same_order(value, tf.cast(tf.clip_by_value(x, dtype.min, dtype.max), dtype))


@op("DequantizeLinear")
def _dequantize(node: Node) -> Value:
    value, axis = node.value(), int(node.attr("axis", 1))
    if node.attr("block_size", 0):
        raise node.error("it is quantized by blocks")
    scale = node.value(1)
    if value.const is not None and scale.const is not None:
        return _constant(node, value.const, scale.const, axis)
    x = tf.cast(value.tensor(), tf.float32)
    if node.has(2):
        x = x - tf.cast(_along(node, 2, value, axis), tf.float32)
    return same_order(value, x * _along(node, 1, value, axis))


def _constant(node: Node, ints: np.ndarray, scale: np.ndarray, axis: int) -> Value:
    zero = node.static(2, "zero point") if node.has(2) else np.zeros_like(scale, dtype=ints.dtype)
    shape = [1] * ints.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    scale, zero = scale.reshape(shape), zero.reshape(shape)
    key = node.value().key
    if ints.ndim < 2:  # biases: small, and 32 bits wide either way
        folded = (ints.astype(np.float64) - zero) * scale
        return Value(const=folded.astype(np.float32), key=f"{key}/float", weights=node.weights)
    return Value(quantized=(ints, scale, zero), key=key, weights=node.weights)


@op("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node) -> list[Value]:
    value = node.value()
    x = value.tensor()
    low, high = tf.minimum(tf.reduce_min(x), 0.0), tf.maximum(tf.reduce_max(x), 0.0)
    scale = (high - low) / 255.0
    zero = tf.clip_by_value(tf.round(-low / scale), 0.0, 255.0)
    q = tf.clip_by_value(tf.round(x / scale) + zero, 0.0, 255.0)
    return [same_order(value, tf.cast(q, tf.uint8)), Value(plain=scale), Value(plain=tf.cast(zero, tf.uint8))]
