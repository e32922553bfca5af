"""Ops that work element by element, with broadcasting: arithmetic, comparison, logic, activations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, dtype_of, op, scalar

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsInf": torch.isinf,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def _gelu(x: Tensor, approximate: Any) -> Tensor:
    return F.gelu(x, approximate="tanh" if approximate in (b"tanh", "tanh") else "none")


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0.0)))


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    # ONNX files round the 1/6 of torch's own hard sigmoid
    return F.hardsigmoid(x) if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5 else (alpha * x + beta).clamp(0, 1)


WITH_ATTRIBUTES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "Celu": (lambda x, alpha: F.celu(x, alpha), {"alpha": 1.0}),
    "Elu": (lambda x, alpha: F.elu(x, alpha), {"alpha": 1.0}),
    "Gelu": (_gelu, {"approximate": "none"}),
    "HardSigmoid": (_hard_sigmoid, {"alpha": 0.2, "beta": 0.5}),
    "LeakyRelu": (lambda x, alpha: F.leaky_relu(x, alpha), {"alpha": 0.01}),
    "Selu": (_selu, {"alpha": 1.6732632, "gamma": 1.050701}),
    "Shrink": (_shrink, {"lambd": 0.5, "bias": 0.0}),
    "Swish": (lambda x, alpha: F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x), {"alpha": 1.0}),
    "ThresholdedRelu": (lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), {"alpha": 1.0}),
}


def _divide(a: Any, b: Any) -> Any:
    integer = not any(isinstance(v, Tensor) and v.is_floating_point() for v in (a, b))
    # ONNX integer division truncates towards zero.
    return torch.div(a, b, rounding_mode="trunc") if integer else a / b


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "BitwiseAnd": operator.and_,
    "BitwiseOr": operator.or_,
    "BitwiseXor": operator.xor,
    "Div": _divide,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Mul": operator.mul,
    "Sub": operator.sub,
}
LOGICAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": operator.add,
}


def _unary(node: Node) -> Value:
    return UNARY[node.op](node.x())


def _with_attributes(node: Node) -> Value:
    function, defaults = WITH_ATTRIBUTES[node.op]
    return function(node.x(), **{name: node.attr(name, default) for name, default in defaults.items()})


def _operands(node: Node) -> tuple[Any, Any]:
    """Both operands; one that is a known number as a Python number, which takes the other's type."""
    first, second = scalar(node, 0), scalar(node, 1)
    return (node.x(0) if first is None else first), (node.x(1) if second is None else second)


def _binary(node: Node) -> Value:
    result: Tensor = BINARY[node.op](*_operands(node))
    return result


def _logical(node: Node) -> Value:
    return LOGICAL[node.op](node.x(0), node.x(1))


def _variadic(node: Node) -> Value:
    if len(node.inputs) == 2 and node.op in ("Max", "Min"):
        for index in (0, 1):
            bound = scalar(node, index)
            if bound is not None:
                x = node.x(1 - index)
                return x.clamp(min=bound) if node.op == "Max" else x.clamp(max=bound)
    return reduce(VARIADIC[node.op], [node.x(i) for i in range(len(node.inputs))])


for _names, _rule in (
    (UNARY, _unary),
    (WITH_ATTRIBUTES, _with_attributes),
    (BINARY, _binary),
    (LOGICAL, _logical),
    (VARIADIC, _variadic),
):
    op(*_names)(_rule)


@op("Mean")
def _mean(node: Node) -> Value:
    return reduce(operator.add, [node.x(i) for i in range(len(node.inputs))]) / len(node.inputs)


@op("Pow")
def _pow(node: Node) -> Value:
    base, power = _operands(node)
    kind = base.dtype if isinstance(base, Tensor) else None
    result: Tensor = torch.pow(base, power)
    return result if kind is None else result.to(kind)  # the result has the base's type


@op("Mod")
def _mod(node: Node) -> Value:
    a, b = _operands(node)
    a = a if isinstance(a, Tensor) else node.x(0)
    return torch.fmod(a, b) if node.attr("fmod", 0) else torch.remainder(a, b)


@op("BitShift")
def _shift(node: Node) -> Value:
    shift = torch.bitwise_left_shift if node.text("direction", "") == "LEFT" else torch.bitwise_right_shift
    return shift(node.x(0), node.x(1))


@op("PRelu")
def _prelu(node: Node) -> Value:
    x, slope = node.x(0), node.x(1)
    per_channel = slope.ndim == x.ndim - 1 and slope.ndim and slope.numel() == slope.shape[0]
    if per_channel and x.ndim > 1 and (slope.numel() == 1 or slope.shape[0] == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, x * slope)


@op("Where")
def _where(node: Node) -> Value:
    return torch.where(node.x(0), node.x(1), node.x(2))


@op("Clip")
def _clip(node: Node) -> Value:
    x = node.x()
    bounds = [_bound(node, name, i) for i, name in ((1, "min"), (2, "max"))]
    if (bounds[0], bounds[1]) == (0, 6):
        return F.relu6(x)
    if any(isinstance(bound, Tensor) for bound in bounds):
        for bound, limit in zip(bounds, (torch.maximum, torch.minimum), strict=True):
            x = x if bound is None else limit(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device))
        return x
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


def _bound(node: Node, name: str, index: int) -> Any:
    if node.has(index) and node.host(index) is None:
        return node.x(index)
    return node.number(name, index)


@op("Dropout")
def _dropout(node: Node) -> list[Value]:
    x = node.x()
    out = F.dropout(x, float(node.number("ratio", 1, 0.5)), node.training)
    return [out, torch.ones_like(x, dtype=torch.bool)] if node.num_outputs > 1 else [out]


@op("Cast")
def _cast(node: Node) -> Value:
    return node.x().to(dtype_of(node, int(node.attr("to"))))


@op("CastLike")
def _cast_like(node: Node) -> Value:
    return node.x().to(node.x(1).dtype)
