"""Ops on host values (sizes, axes, index lists): NumPy, which carries symbolic sizes in object arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from penjing.models.onnx_ops.node import Node, host, host_array, is_symbolic

_SMALL = 1 << 10
"""Larger arrays than this are made as tensors."""

Arrays = list[np.ndarray]


def _divide(a: Any, b: Any) -> Any:
    if not all(isinstance(v, int | np.integer | torch.SymInt) for v in (a, b)):
        return a / b
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        return a // b  # sizes are not negative, so this truncates as ONNX does
    return abs(int(a)) // abs(int(b)) * (1 if (a < 0) == (b < 0) else -1)


def _round_half_even(a: Any) -> Any:
    return round(a)


TWO: dict[str, tuple[Callable[[Any, Any], Any], Callable[..., Any] | None]] = {
    "Add": (operator.add, np.add),
    "Sub": (operator.sub, np.subtract),
    "Mul": (operator.mul, np.multiply),
    "Div": (_divide, None),
    "Mod": (operator.mod, None),
    "Equal": (operator.eq, np.equal),
    "Less": (operator.lt, np.less),
    "LessOrEqual": (operator.le, np.less_equal),
    "Greater": (operator.gt, np.greater),
    "GreaterOrEqual": (operator.ge, np.greater_equal),
    "Max": (max, np.maximum),
    "Min": (min, np.minimum),
    "And": (operator.and_, np.logical_and),
    "Or": (operator.or_, np.logical_or),
}
"""ONNX op → on one pair of numbers or symbolic sizes, and on whole arrays of plain numbers."""
ONE: dict[str, tuple[Callable[[Any], Any], Callable[..., Any] | None]] = {
    "Abs": (abs, np.abs),
    "Neg": (operator.neg, np.negative),
    "Ceil": (math.ceil, np.ceil),
    "Floor": (math.floor, np.floor),
    "Not": (operator.not_, np.logical_not),
    "Round": (_round_half_even, np.round),
    "Identity": (lambda a: a, lambda a: a),
}


def _each(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """``function`` on each element, by Python, with broadcasting."""
    wide = np.broadcast_arrays(*arrays)
    out = np.empty(wide[0].shape, object)
    for at in np.ndindex(wide[0].shape):
        out[at] = function(*(array[at] for array in wide))
    return out


def _plain(array: np.ndarray, dtype: Any) -> np.ndarray:
    """An object array with no symbolic size left in it as one of numbers."""
    symbolic = any(isinstance(v, torch.SymInt | torch.SymFloat | torch.SymBool) for v in array.reshape(-1))
    return array if symbolic else array.astype(dtype)


_COMPARED = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"}


def _two(node: Node, arrays: Arrays) -> Any:
    if len(arrays) != 2:
        return NotImplemented
    number, whole = TWO[node.op]
    a, b = arrays
    if whole is not None and not is_symbolic(a) and not is_symbolic(b):
        return whole(a, b)
    if node.op in ("Div", "Mod") and not is_symbolic(a) and not is_symbolic(b):
        return NotImplemented if a.size > _SMALL else _by_number(node, number, a, b)
    return _by_number(node, number, a, b)


def _by_number(node: Node, number: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    out = _each(number, *arrays)
    if node.op in _COMPARED:
        return _plain(_each(bool, out), bool)
    kinds = [a.dtype for a in arrays if not is_symbolic(a)]
    return _plain(out, kinds[0] if len(kinds) == len(arrays) else np.int64)


def _one(node: Node, arrays: Arrays) -> Any:
    number, whole = ONE[node.op]
    (a,) = arrays
    return whole(a) if whole is not None and not is_symbolic(a) else _by_number(node, number, a)


host(*TWO)(_two)
host(*ONE)(_one)


@host("Cast", "CastLike")
def _cast(node: Node, arrays: Arrays) -> Any:
    import onnx

    a = arrays[0]
    kind = arrays[1].dtype if node.op == "CastLike" else _numpy_type(onnx, int(node.attr("to")))
    if kind is None or kind.kind not in "fiub":
        return NotImplemented
    if not is_symbolic(a):
        return a.astype(kind)
    if kind.kind != "f":
        return _each(lambda v: v if isinstance(v, torch.SymInt) else math.trunc(v), a)
    return _each(lambda v: v if isinstance(v, torch.SymInt | torch.SymFloat) else float(v), a)


def _numpy_type(onnx: Any, code: int) -> Any:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, TypeError, ValueError):
        return None


@host("Concat")
def _concat(node: Node, arrays: Arrays) -> Any:
    return np.concatenate(arrays, int(node.attr("axis", 0)))


@host("Gather")
def _gather(node: Node, arrays: Arrays) -> Any:
    data, index = arrays
    return np.asarray(np.take(data, index.astype(np.int64), int(node.attr("axis", 0))), data.dtype)


@host("Slice")
def _slice(node: Node, arrays: Arrays) -> Any:
    data = arrays[0]
    starts, ends = node.ints("starts", 1) or [], node.ints("ends", 2) or []
    axes, steps = node.ints("axes", 3) or list(range(len(starts))), node.ints("steps", 4)
    picks: list[slice] = [slice(None)] * data.ndim
    for i, (start, end, axis) in enumerate(zip(starts, ends, axes, strict=True)):
        step = steps[i] if steps else 1
        stop = None if step < 0 and end < -data.shape[axis] else end
        picks[axis] = slice(start, stop, step)
    return data[tuple(picks)]


@host("Squeeze")
def _squeeze(node: Node, arrays: Arrays) -> Any:
    axes = node.ints("axes", 1)
    return np.squeeze(arrays[0], None if axes is None else tuple(axes))


@host("Unsqueeze")
def _unsqueeze(node: Node, arrays: Arrays) -> Any:
    return np.expand_dims(arrays[0], tuple(node.ints("axes", 1) or ()))


@host("Reshape")
def _reshape(node: Node, arrays: Arrays) -> Any:
    if is_symbolic(arrays[1]):
        return NotImplemented
    zero = bool(node.attr("allowzero", 0))
    sizes = [arrays[0].shape[i] if n == 0 and not zero else int(n) for i, n in enumerate(arrays[1])]
    return arrays[0].reshape(sizes)


@host("Transpose")
def _transpose(node: Node, arrays: Arrays) -> Any:
    return np.transpose(arrays[0], node.attr("perm"))


@host("Where")
def _where(node: Node, arrays: Arrays) -> Any:
    condition, a, b = arrays
    if not (is_symbolic(a) or is_symbolic(b)):
        return np.where(condition, a, b)
    return _each(lambda c, x, y: x if c else y, condition, a, b)


@host("Expand")
def _expand(node: Node, arrays: Arrays) -> Any:
    if is_symbolic(arrays[1]) or int(np.prod(arrays[1])) > _SMALL:
        return NotImplemented
    shape = np.broadcast_shapes(arrays[0].shape, tuple(int(n) for n in arrays[1]))
    return np.broadcast_to(arrays[0], shape).copy()


@host("ConstantOfShape")
def _constant_of_shape(node: Node, arrays: Arrays) -> Any:
    if is_symbolic(arrays[0]) or int(np.prod(arrays[0])) > _SMALL:
        return NotImplemented
    value = node.attr("value", np.zeros(1, np.float32))
    return np.full([int(n) for n in arrays[0]], value.reshape(-1)[0])


@host("Range")
def _range(node: Node, arrays: Arrays) -> Any:
    if any(is_symbolic(a) for a in arrays):
        return NotImplemented
    start, stop, step = (a.reshape(-1)[0] for a in arrays)
    return np.arange(start, stop, step).astype(arrays[0].dtype)


_FOLDS: dict[str, Callable[..., Any]] = {
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
}


@host(*_FOLDS)
def _reduce(node: Node, arrays: Arrays) -> Any:
    axes = node.ints("axes", 1)
    if axes is None and node.attr("noop_with_empty_axes", 0):
        return arrays[0]
    over = None if axes is None else tuple(axes)
    result = _FOLDS[node.op](arrays[0], axis=over, keepdims=bool(node.attr("keepdims", 1)))
    return result if isinstance(result, np.ndarray) else host_array(result, dtype=arrays[0].dtype)


@host("Split")
def _split(node: Node, arrays: Arrays) -> Any:
    axis, sizes = int(node.attr("axis", 0)), node.ints("split", 1)
    length = arrays[0].shape[axis]
    if sizes is None:
        count = int(node.attr("num_outputs", node.num_outputs))
        chunk = -(-length // count)
        sizes = [min(chunk, length - chunk * i) for i in range(count)]
    return np.split(arrays[0], np.cumsum(sizes)[:-1].tolist(), axis)
