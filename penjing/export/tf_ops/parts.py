"""Shape arithmetic, element by element: what ONNX graphs do with ``Shape`` keeps its fixed numbers fixed.

``Shape → Gather → Concat → Reshape`` with a free batch gives a vector of which all but one element are
known. TensorFlow would forget the known ones; here each element is an int or a scalar tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node
from penjing.export.tf_ops.value import Value

Parts = list[Any]


def _quotient(a: Any, b: Any) -> Any:
    """Of sizes, which are not negative, so that this truncates as ONNX does. They fit 32 bits, of which
    LiteRT has a division; of 64 it has none."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return tf.cast(tf.cast(a, tf.int32) // tf.cast(b, tf.int32), tf.int64)


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _quotient,
}


def parts_of(value: Value | None) -> Parts | None:
    """Elements of an integer vector or scalar, if they are known one by one."""
    if value is None:
        return None
    if value.parts is not None:
        return value.parts
    if (
        value.const is not None
        and value.const.ndim <= 1
        and value.const.dtype.kind == "i"
        and value.const.size <= 64
    ):
        return [int(i) for i in value.const.reshape(-1)]
    return None


def fold_parts(node: Node) -> Value | None:
    """The node's output when it is shape arithmetic on known elements; None when it is not."""
    if node.op == "Shape":
        return _shape(node)
    if not node.inputs or all(v is None or v.const is not None for v in node.inputs):
        return None
    given = [parts_of(value) for value in node.inputs]
    first = given[0]
    if first is None:
        return None
    rank = node.inputs[0].rank if node.inputs[0] is not None else None
    if (
        node.op == "Gather"
        and given[1] is not None
        and rank == 1
        and all(isinstance(i, int) for i in given[1])
    ):
        return _value([first[i] for i in given[1]], scalar=node.value(1).rank == 0)
    if node.op == "Concat" and all(part is not None for part in given):
        return _value([element for part in given if part is not None for element in part], scalar=False)
    if node.op == "Slice" and all(part is not None for part in given[1:]):
        start, end = given[1], given[2]
        step = given[4][0] if len(given) > 4 and given[4] else 1
        if start and end and isinstance(start[0], int) and isinstance(end[0], int) and isinstance(step, int):
            return _value(first[start[0] : end[0] : step], scalar=False)
    if node.op in ("Unsqueeze", "Squeeze", "Identity", "Cast") and len(first) == 1:
        if node.op == "Cast" and int(node.attr("to")) not in (6, 7):
            return None
        scalar = node.op == "Squeeze" or (node.op in ("Identity", "Cast") and rank == 0)
        if node.op == "Unsqueeze" and rank != 0:
            return None
        return _value(first, scalar=scalar)
    if node.op in _ARITHMETIC and given[1] is not None and 1 in (len(first), len(given[1])):
        a, b = first, given[1]
        size = max(len(a), len(b))
        a, b = (side * size if len(side) == 1 else side for side in (a, b))
        ranks = [v.rank for v in node.inputs if v is not None]
        return _value([_ARITHMETIC[node.op](i, j) for i, j in zip(a, b, strict=True)], scalar=ranks == [0, 0])
    return None


def _shape(node: Node) -> Value | None:
    value = node.value()
    shape = value.shape
    if shape is None:
        return None
    picked = range(len(shape))[int(node.attr("start", 0)) : int(node.attr("end", len(shape)))]
    if all(shape[i] is not None for i in picked):
        return _value([shape[i] for i in picked], scalar=False)
    sizes = tf.shape(value.tensor(), out_type=tf.int64)
    order = [0, len(shape) - 1, *range(1, len(shape) - 1)] if value.is_last else list(range(len(shape)))
    return _value([sizes[order[i]] if shape[i] is None else shape[i] for i in picked], scalar=False)


def _value(parts: Parts, *, scalar: bool) -> Value:
    if all(isinstance(part, int) for part in parts):
        array = np.asarray(parts, np.int64)
        return Value(const=array.reshape(()) if scalar else array)
    stacked = tf.stack([tf.cast(part, tf.int64) for part in parts])
    return Value(plain=stacked[0] if scalar else stacked, parts=parts)
