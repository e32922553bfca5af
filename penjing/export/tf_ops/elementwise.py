"""Ops that work element by element, with broadcasting: arithmetic, comparison, logic, activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from penjing.export.tf_ops import elementary
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.broadcast import broadcast
from penjing.export.tf_ops.node import Node, aligned, op, restore, same_order
from penjing.export.tf_ops.value import Tensor, Value

Unary = Callable[[Tensor], Tensor]


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # ONNX integer division truncates towards zero.
    return elementary.quotient(a, b) if a.dtype.is_integer else tf.divide(a, b)


def _celu(x: Tensor, alpha: float) -> Tensor:
    return tf.maximum(x, 0.0) + tf.minimum(alpha * (tf.exp(x / alpha) - 1.0), 0.0)


def _gelu(x: Tensor, approximate: Any) -> Tensor:
    return tf.nn.gelu(x, approximate=approximate in (b"tanh", "tanh"))


def _round(x: Tensor) -> Tensor:
    return tf.round(x)  # half to even, as ONNX


UNARY: dict[str, Unary] = {
    "Abs": tf.abs,
    "Acos": elementary.acos,
    "Acosh": elementary.acosh,
    "Asin": elementary.asin,
    "Asinh": elementary.asinh,
    "Atan": elementary.atan,
    "Atanh": elementary.atanh,
    "BitwiseNot": tf.bitwise.invert,
    "Ceil": tf.math.ceil,
    "Cos": tf.cos,
    "Cosh": elementary.cosh,
    "Erf": elementary.erf,
    "Exp": tf.exp,
    "Floor": tf.floor,
    "HardSwish": lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    "Identity": tf.identity,
    "IsInf": tf.math.is_inf,
    "IsNaN": tf.math.is_nan,
    "Log": tf.math.log,
    "Mish": lambda x: x * tf.tanh(tf.nn.softplus(x)),
    "Neg": tf.negative,
    "Not": tf.logical_not,
    "Reciprocal": tf.math.reciprocal,
    "Relu": tf.nn.relu,
    "Round": _round,
    "Sigmoid": tf.sigmoid,
    "Sign": tf.sign,
    "Sin": tf.sin,
    "Sinh": elementary.sinh,
    "Softplus": tf.nn.softplus,
    "Softsign": tf.nn.softsign,
    "Sqrt": tf.sqrt,
    "Tan": elementary.tan,
    "Tanh": tf.tanh,
}

WITH_ATTRIBUTES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "Celu": (_celu, {"alpha": 1.0}),
    "Elu": (lambda x, alpha: tf.where(x > 0, x, alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0)), {"alpha": 1.0}),
    "Gelu": (_gelu, {"approximate": "none"}),
    "HardSigmoid": (
        lambda x, alpha, beta: tf.clip_by_value(alpha * x + beta, 0.0, 1.0),
        {"alpha": 0.2, "beta": 0.5},
    ),
    "LeakyRelu": (lambda x, alpha: tf.nn.leaky_relu(x, alpha), {"alpha": 0.01}),
    "Selu": (
        lambda x, alpha, gamma: gamma * tf.where(x > 0, x, alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0)),
        {"alpha": 1.6732632, "gamma": 1.050701},
    ),
    "Shrink": (
        lambda x, lambd, bias: tf.where(
            x < -lambd, x + bias, tf.where(x > lambd, x - bias, tf.zeros_like(x))
        ),
        {"lambd": 0.5, "bias": 0.0},
    ),
    "Swish": (lambda x, alpha: x * tf.sigmoid(alpha * x), {"alpha": 1.0}),
    "ThresholdedRelu": (lambda x, alpha: tf.where(x > alpha, x, tf.zeros_like(x)), {"alpha": 1.0}),
}

NARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": tf.add,
    "And": tf.logical_and,
    "BitwiseAnd": tf.bitwise.bitwise_and,
    "BitwiseOr": tf.bitwise.bitwise_or,
    "BitwiseXor": tf.bitwise.bitwise_xor,
    "Div": _divide,
    "Equal": tf.equal,
    "Greater": tf.greater,
    "GreaterOrEqual": tf.greater_equal,
    "Less": tf.less,
    "LessOrEqual": tf.less_equal,
    "Max": tf.maximum,
    "Min": tf.minimum,
    "Mul": tf.multiply,
    "Or": tf.logical_or,
    "Sub": tf.subtract,
    "Sum": tf.add,
    "Xor": tf.math.logical_xor,
}

_RANKS = dict.fromkeys(("Add", "Div", "Mul", "Sub", "Sum"), 5)
"""Dimensions in which LiteRT's kernels broadcast, where they are not four."""

_NON_NEGATIVE = {"Relu", "Sigmoid", "HardSigmoid", "Abs", "Exp", "Softplus", "Sqrt"}


def _unary(node: Node) -> Value:
    value = node.value()
    out = same_order(value, UNARY[node.op](value.tensor()))
    out.non_negative = node.op in _NON_NEGATIVE
    return out


def _with_attributes(node: Node) -> Value:
    rule, defaults = WITH_ATTRIBUTES[node.op]
    value = node.value()
    options = {name: node.attr(name, default) for name, default in defaults.items()}
    out = same_order(value, rule(value.tensor(), **options))
    out.non_negative = node.op in _NON_NEGATIVE
    return out


def _nary(node: Node) -> Value:
    tensors, last = aligned([node.value(i) for i in range(len(node.inputs))])
    rule, rank = NARY[node.op], _RANKS.get(node.op, 4)
    return restore(reduce(lambda a, b: broadcast(rule, (a, b), rank), tensors), last)


op(*UNARY)(_unary)
op(*WITH_ATTRIBUTES)(_with_attributes)
op(*NARY)(_nary)


@op("Mean")
def _mean(node: Node) -> Value:
    tensors, last = aligned([node.value(i) for i in range(len(node.inputs))])
    return restore(
        tf.add_n(tf.nest.flatten(tensors)) / len(tensors) if len(tensors) > 1 else tensors[0], last
    )


@op("Pow")
def _pow(node: Node) -> Value:
    (base, exponent), last = aligned([node.value(0), node.value(1)])
    constant = node.value(1).const
    if constant is not None and constant.size == 1 and float(constant.reshape(())) == 2.0:
        return restore(tf.square(base), last)
    return restore(tf.pow(base, tf.cast(exponent, base.dtype)), last)


@op("Mod")
def _mod(node: Node) -> Value:
    (a, b), last = aligned([node.value(0), node.value(1)])
    return restore(elementary.remainder(a, b) if node.attr("fmod", 0) else tf.math.floormod(a, b), last)


@op("PRelu")
def _prelu(node: Node) -> Value:
    (x, slope), last = aligned([node.value(0), node.value(1)])
    return restore(tf.where(x < 0, x * slope, x), last)


@op("Where")
def _where(node: Node) -> Value:
    (condition, a, b), last = aligned([node.value(0), node.value(1), node.value(2)])
    return restore(broadcast(tf.where, (condition, a, b), 4), last)


@op("Clip")
def _clip(node: Node) -> Value:
    value = node.value()
    x = value.tensor()
    low = node.attr("min") if "min" in node.attributes else (node.x(1) if node.has(1) else None)
    high = node.attr("max") if "max" in node.attributes else (node.x(2) if node.has(2) else None)
    floor = node.optional(1)
    bounds = (_scalar(node, 1, "min"), _scalar(node, 2, "max"))
    if bounds == (0.0, 6.0):
        x = tf.nn.relu6(x)
    else:
        x = x if low is None else tf.maximum(x, tf.cast(low, x.dtype))
        x = x if high is None else tf.minimum(x, tf.cast(high, x.dtype))
    out = same_order(value, x)
    out.non_negative = floor is not None and floor.const is not None and float(floor.const.min()) >= 0
    return out


def _scalar(node: Node, index: int, attribute: str) -> float | None:
    if attribute in node.attributes:
        return float(node.attributes[attribute])
    value = node.optional(index)
    return None if value is None or value.const is None else float(value.const.reshape(()))


@op("Dropout")
def _dropout(node: Node) -> Value | list[Value]:
    value = node.value()
    out = same_order(value, tf.identity(value.tensor()))
    if node.num_outputs == 1:
        return out
    return [out, same_order(value, tf.ones_like(value.tensor(), dtype=tf.bool))]
