"""Making values, and changing their type."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op, plain, same_order
from penjing.export.tf_ops.value import Value


@op("Constant")
def _constant(node: Node) -> Value:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            dtype = {"value_float": np.float32, "value_floats": np.float32}.get(name)
            array = np.asarray(node.attributes[name], dtype)
            return Value(const=array, key=node.name or node.op, weights=node.weights)
    raise node.error("it holds strings or a sparse tensor")


@op("ConstantOfShape")
def _constant_of_shape(node: Node) -> Value:
    fill = np.asarray(node.attr("value", np.zeros(1, np.float32))).reshape(-1)[0]
    return plain(tf.fill(node.x(0), fill))


@op("Range")
def _range(node: Node) -> Value:
    start, limit, delta = (tf.reshape(node.x(i), []) for i in range(3))
    return plain(tf.range(start, limit, delta))


@op("EyeLike")
def _eye_like(node: Node) -> Value:
    x = node.x(0)
    shape = tf.shape(x, out_type=tf.int64)
    away = tf.range(shape[1])[tf.newaxis, :] - tf.range(shape[0])[:, tf.newaxis]
    dtype = tf_type(int(node.attr("dtype"))) if node.attr("dtype") else x.dtype
    return plain(tf.cast(tf.equal(away, int(node.attr("k", 0))), dtype))


def tf_type(onnx_type: int) -> Any:
    """TensorFlow dtype of an ONNX element type."""
    return tf.as_dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx_type))


@op("Cast")
def _cast(node: Node) -> Value:
    value = node.value()
    return same_order(value, tf.cast(value.tensor(), tf_type(int(node.attr("to")))))


@op("CastLike")
def _cast_like(node: Node) -> Value:
    value = node.value()
    return same_order(value, tf.cast(value.tensor(), node.value(1).dtype))
