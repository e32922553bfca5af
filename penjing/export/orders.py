"""What goes by the order of values, for which torch has no ONNX translation or one that LiteRT lacks: ranks,
medians, running extremes and products, places among boundaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import TensorProto
from onnxscript import opset18 as op


def stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """``aten.sort.stable``: of equal values ONNX gives the one with the lower index first, too."""
    if not x.shape:
        return op.Identity(x), op.Constant(value_int=0)
    count = op.Shape(x, start=dim, end=dim + 1 or None)
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)  # type: ignore[no-any-return]


def kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """``aten.kthvalue``: the ``k``-th smallest value along a dimension, and its place."""
    return _last_of_smallest(x, op.Constant(value_ints=[k]), dim, keepdim)


def median(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """``aten.median.dim``: of an even number of values the lower one of the middle."""
    length = op.Shape(x, start=dim, end=None if dim in (-1, len(x.shape) - 1) else dim + 1)
    one, two = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
    return _last_of_smallest(x, op.Div(op.Add(length, one), two), dim, keepdim)


def _last_of_smallest(x: Any, count: Any, dim: int, keepdim: bool) -> tuple[Any, Any]:
    last = op.Constant(value_ints=[-1])
    out = [op.Gather(part, last, axis=dim) for part in op.TopK(x, count, axis=dim, largest=0)]
    if not keepdim:
        out = [op.Squeeze(part, op.Constant(value_ints=[dim])) for part in out]
    return out[0], out[1]


def searchsorted(
    boundaries: Any,
    x: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    """``aten.searchsorted``: how many boundaries ``[…, B]`` are below each value ``[…, n]`` (or at it)."""
    if sorter is not None:
        boundaries = op.GatherElements(boundaries, sorter, axis=-1)
    return _below(boundaries, x, right or side == "right", out_int32)


def bucketize(x: Any, boundaries: Any, out_int32: bool = False, right: bool = False) -> Any:
    """``aten.bucketize``: `searchsorted` among boundaries that all values share."""
    return _below(boundaries, x, right, out_int32)


def _below(boundaries: Any, x: Any, right: bool, out_int32: bool) -> Any:
    values = op.Unsqueeze(x, op.Constant(value_ints=[-1]))
    if len(boundaries.shape) > 1:
        boundaries = op.Unsqueeze(boundaries, op.Constant(value_ints=[-2]))
    boundaries = op.CastLike(boundaries, values)
    before = op.LessOrEqual(boundaries, values) if right else op.Less(boundaries, values)
    return op.ReduceSum(
        op.Cast(before, to=TensorProto.INT32 if out_int32 else TensorProto.INT64),
        op.Constant(value_ints=[-1]),
        keepdims=0,
    )


def running(better: Callable[[Any, Any], Any]) -> Callable[[Any, int], tuple[Any, Any]]:
    """``aten.cummax`` or ``cummin``: each value and its place, or those of a better one before it.

    In steps of 1, 2, 4 … places, as each value then stands for as many before it.
    """

    def translate(x: Any, dim: int) -> tuple[Any, Any]:
        length = _length(x, dim)
        place = _along(op.Constant(value_ints=[*range(length)]), x, dim)
        place = op.Expand(place, op.Shape(x))
        step = 1
        while step < length:
            head, head_at = (_slice(part, 0, step, dim) for part in (x, place))
            now, now_at = (_slice(part, step, length, dim) for part in (x, place))
            past, past_at = (_slice(part, 0, length - step, dim) for part in (x, place))
            wins = better(past, now)
            x = op.Concat(head, op.Where(wins, past, now), axis=dim)
            place = op.Concat(head_at, op.Where(wins, past_at, now_at), axis=dim)
            step *= 2
        return x, place

    return translate


def cumprod(x: Any, dim: int, dtype: int = -1) -> Any:
    """``aten.cumprod``: products of all values up to each, in steps of 1, 2, 4 … places."""
    length, step = _length(x, dim), 1
    while step < length:
        products = op.Mul(_slice(x, 0, length - step, dim), _slice(x, step, length, dim))
        x = op.Concat(_slice(x, 0, step, dim), products, axis=dim)
        step *= 2
    return x


def _length(x: Any, dim: int) -> int:
    length = x.shape[dim]
    if not isinstance(length, int):
        what = "a running product, maximum or minimum"
        raise ValueError(f"{what} along a dimension of free size has no ONNX (leave that size fixed)")
    return length


def _along(row: Any, x: Any, dim: int) -> Any:
    shape = [1] * len(x.shape)
    shape[dim] = -1
    return op.Reshape(row, op.Constant(value_ints=shape))


def _slice(x: Any, start: int, stop: int, dim: int) -> Any:
    bounds = ([start], [stop], [dim])
    return op.Slice(x, *(op.Constant(value_ints=bound) for bound in bounds))
