"""Reductions, argmax and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, op


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}


@op(*REDUCE)
def _reduce(node: Node) -> Value:
    x, axes = node.x(), node.ints("axes", 1)
    if not axes:
        if node.attr("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.ndim))
    return REDUCE[node.op](x, [a % x.ndim for a in axes], bool(node.attr("keepdims", 1)))


@op("ArgMax", "ArgMin")
def _arg(node: Node) -> Value:
    x, axis = node.x(), node.axis(0)
    pick, keep = (torch.argmax if node.op == "ArgMax" else torch.argmin), bool(node.attr("keepdims", 1))
    if node.attr("select_last_index", 0):
        return x.shape[axis] - 1 - pick(x.flip(axis), axis, keep)
    return pick(x, axis, keep)


@op("CumSum")
def _cumsum(node: Node) -> Value:
    x = node.x()
    axis = int(node.static(1, "axis")) % x.ndim
    backwards = bool(node.attr("reverse", 0))
    x = x.flip(axis) if backwards else x
    out = x.cumsum(axis, dtype=x.dtype)
    out = out - x if node.attr("exclusive", 0) else out
    return out.flip(axis) if backwards else out
