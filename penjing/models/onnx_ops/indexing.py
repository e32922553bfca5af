"""Ops that pick or place elements by position: gather, scatter, top-k, one-hot, triangles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.models.onnx_ops.node import Node, Value, as_tensor, op


@op("Gather")
def _gather(node: Node) -> Value:
    x, axis, known = node.x(0), node.axis(0), node.host(1)
    if known is not None and known.ndim == 0:
        at = known.reshape(-1)[0]
        return x.select(axis, at if isinstance(at, torch.SymInt) else int(at))
    if known is not None and x.ndim == 1 and _counts(known) and known.size == x.shape[0]:
        return x.reshape(known.shape)
    index = node.x(1)
    if axis == 0 and isinstance(node.value(0), nn.Parameter) and x.ndim == 2:
        return F.embedding(index, x)
    index = _wrapped(node, 1, index, x.shape[axis])
    if index.ndim == 1:
        return x.index_select(axis, index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _counts(index: np.ndarray) -> bool:
    """Whether the positions are 0, 1, 2, … in order."""
    return index.dtype != object and np.array_equal(index.reshape(-1), np.arange(index.size))


def _wrapped(node: Node, input_index: int, index: Tensor, size: int) -> Tensor:
    """Positions counted from the end as ones counted from the front."""
    known = node.host(input_index)
    if known is not None and known.dtype != object:
        return as_tensor(known % size, index.device).long() if (known < 0).any() else index
    return torch.where(index < 0, index + size, index)


@op("GatherElements")
def _gather_elements(node: Node) -> Value:
    x, axis = node.x(0), node.axis(0)
    return torch.gather(x, axis, _wrapped(node, 1, node.x(1), x.shape[axis]).long())


@op("GatherND")
def _gather_nd(node: Node) -> Value:
    x, index, batch = node.x(0), node.x(1), int(node.attr("batch_dims", 0))
    where = _coordinates(x, index, batch)
    return x[where]


def _coordinates(x: Tensor, index: Tensor, batch: int = 0) -> tuple[Tensor, ...]:
    """Index tensors of the leading dimensions; ``index`` holds a row of coordinates in its last dimension."""
    outer = range(index.ndim - 1)
    front = [
        torch.arange(x.shape[d], device=x.device).reshape([-1 if i == d else 1 for i in outer])
        for d in range(batch)
    ]
    rows = [index[..., i].long() for i in range(index.shape[-1])]
    return (*front, *rows)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements", "Scatter")
def _scatter(node: Node) -> Value:
    x, axis, updates = node.x(0), node.axis(0), node.x(2)
    index = _wrapped(node, 1, node.x(1), x.shape[axis]).long()
    how = node.text("reduction", "none")
    if how == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[how])


@op("ScatterND")
def _scatter_nd(node: Node) -> Value:
    x, index, updates = node.x(0), node.x(1), node.x(2)
    how = node.text("reduction", "none")
    if how not in ("none", "add"):
        raise node.error(f"the reduction {how!r}")
    return x.index_put(_coordinates(x, index), updates, accumulate=how == "add")


@op("OneHot")
def _one_hot(node: Node) -> Value:
    depth = int(node.static(1, "depth").reshape(-1)[0])
    off, on = node.x(2).unbind(0)
    index = node.x(0).long() % depth
    axis = int(node.attr("axis", -1))
    axis = axis + index.ndim + 1 if axis < 0 else axis
    hot = index.unsqueeze(axis) == torch.arange(depth, device=index.device).reshape(
        [-1 if i == axis else 1 for i in range(index.ndim + 1)]
    )
    return torch.where(hot, on, off)


@op("TopK")
def _top_k(node: Node) -> list[Value]:
    x = node.x()
    k = node.integer(node.attr("k") if "k" in node.attributes else node.static(1, "k").reshape(-1)[0])
    best, at = torch.topk(x, k, node.axis(-1), bool(node.attr("largest", 1)), bool(node.attr("sorted", 1)))
    return [best, at]


@op("NonZero")
def _non_zero(node: Node) -> Value:
    return node.x().nonzero().t()


@op("Trilu")
def _trilu(node: Node) -> Value:
    k = int(node.static(1, "k").reshape(-1)[0]) if node.has(1) else 0
    return torch.triu(node.x(), k) if node.attr("upper", 1) else torch.tril(node.x(), k)


@op("Compress")
def _compress(node: Node) -> Value:
    keep: Any = np.flatnonzero(node.static(1, "condition"))
    x = node.x() if "axis" in node.attributes else node.x().reshape(-1)
    return x.index_select(node.axis(0, rank=x.ndim), torch.tensor(keep, device=x.device))
