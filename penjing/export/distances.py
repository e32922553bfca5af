"""Distances between all pairs of rows, for which torch has no ONNX translation."""

from __future__ import annotations

import math
from typing import Any

from onnxscript import opset18 as op

FEW = 25
"""Up to so many rows torch subtracts them pair by pair; beyond, it multiplies matrices."""


def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
    """``aten.cdist``: ``[…, P, R]`` of ``[…, P, M]`` and ``[…, R, M]`` in the norm ``p``."""
    if p == 2.0 and not any(isinstance(rows, int) and rows <= FEW for rows in (x1.shape[-2], x2.shape[-2])):
        return _by_products(x1, x2)
    last = op.Constant(value_ints=[-1])
    away = op.Abs(
        op.Sub(op.Unsqueeze(x1, op.Constant(value_ints=[-2])), op.Unsqueeze(x2, op.Constant(value_ints=[-3])))
    )
    if p == 1.0:
        return op.ReduceSum(away, last, keepdims=0)
    if p == 2.0:
        return op.ReduceL2(away, last, keepdims=0)
    if math.isinf(p):
        return op.ReduceMax(away, last, keepdims=0)
    if p == 0.0:
        zero = op.CastLike(op.Constant(value_float=0.0), x1)
        return op.ReduceSum(op.CastLike(op.Greater(away, zero), x1), last, keepdims=0)
    power, root = (op.CastLike(op.Constant(value_float=value), x1) for value in (p, 1.0 / p))
    return op.Pow(op.ReduceSum(op.Pow(away, power), last, keepdims=0), root)


def _by_products(x1: Any, x2: Any) -> Any:
    """``|a − b|² = |a|² + |b|² − 2ab``, as torch computes it where there are many rows."""
    last = op.Constant(value_ints=[-1])
    rank = len(x2.shape)
    turned = op.Transpose(x2, perm=[*range(rank - 2), rank - 1, rank - 2])
    squares = op.ReduceSumSquare(turned, op.Constant(value_ints=[-2]))
    two, zero = (op.CastLike(op.Constant(value_float=value), x1) for value in (2.0, 0.0))
    total = op.Sub(op.Add(op.ReduceSumSquare(x1, last), squares), op.Mul(two, op.MatMul(x1, turned)))
    return op.Sqrt(op.Max(total, zero))
