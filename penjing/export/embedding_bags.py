"""Sums, means and maxima of bags of embeddings, which torch translates to a loop over the bags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto
from onnxscript import opset18 as op
from torch.fx.experimental.symbolic_shapes import statically_known_true

SUM, MEAN, MAX = range(3)


def embedding_bag(even: bool) -> Callable[..., Any]:
    """The translation of ``aten.embedding_bag`` for bags that are all as long, or for any.

    Bags of one length are a ``[B, L]`` table of indices. Of others it is told which index is in which bag
    (``[B, n]``), by the number of bags that have begun.
    """

    def translate(
        weight: Any,
        indices: Any,
        offsets: Any,
        scale_grad_by_freq: bool = False,
        mode: int = SUM,
        sparse: bool = False,
        per_sample_weights: Any = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Sequence[Any]:
        if include_last_offset:
            offsets = op.Slice(offsets, op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
        column = op.Concat(op.Shape(offsets), op.Constant(value_ints=[-1]), axis=0)
        if even:
            indices = op.Reshape(indices, column)  # [B, L]
            inside = op.Equal(indices, indices)  # all of them
        else:
            one = op.Constant(value_int=1)
            place = op.Range(op.Constant(value_int=0), op.Size(indices), one)
            begun = op.GreaterOrEqual(
                place, op.Cast(op.Reshape(offsets, column), to=TensorProto.INT64)
            )  # [B, n]
            bag_1n = op.ReduceSum(
                op.Cast(begun, to=TensorProto.INT64), op.Constant(value_ints=[0]), keepdims=1
            )
            number = op.Range(op.Constant(value_int=1), op.Add(op.Size(offsets), one), one)
            inside = op.Equal(bag_1n, op.Reshape(number, column))
        if padding_idx is not None:
            pad = op.CastLike(op.Constant(value_int=padding_idx), indices)
            inside = op.And(inside, op.Not(op.Equal(indices, pad)))
        rows = op.Gather(weight, indices)  # [B, L, D] or [n, D]
        if mode == MAX:
            return _one(_largest(rows, inside))
        counted = op.CastLike(inside, rows)
        if per_sample_weights is not None:
            counted = op.Mul(counted, op.Reshape(per_sample_weights, op.Shape(indices)))
        if even:
            counted = op.Unsqueeze(counted, op.Constant(value_ints=[1]))  # [B, 1, L]
            total = op.Squeeze(op.MatMul(counted, rows), op.Constant(value_ints=[1]))
        else:
            total = op.MatMul(counted, rows)
        if mode == MEAN:
            number = op.ReduceSum(op.CastLike(inside, rows), op.Constant(value_ints=[1]))
            total = op.Div(total, op.Max(number, op.CastLike(op.Constant(value_float=1.0), rows)))
        return _one(total)

    return translate


def _largest(rows: Any, inside: Any) -> Any:
    last, zero = op.Constant(value_ints=[-1]), op.CastLike(op.Constant(value_float=0.0), rows)
    lowest = op.CastLike(op.Constant(value_float=float("-inf")), rows)
    largest = op.ReduceMax(
        op.Where(op.Unsqueeze(inside, last), rows, lowest), op.Constant(value_ints=[1]), keepdims=0
    )
    return op.Where(op.Equal(largest, lowest), zero, largest)  # of an empty bag


def _one(bags: Any) -> tuple[Any, ...]:
    """What the op gives; the other three serve its gradient."""
    return bags, op.Identity(bags), op.Identity(bags), op.Identity(bags)


def are_even(call: torch.fx.Node) -> bool:
    """Whether the bags are the rows of a table of indices, which torch splits at each length of a row."""
    indices, offsets = call.args[1:3]
    assert isinstance(indices, torch.fx.Node)
    if not isinstance(offsets, torch.fx.Node) or offsets.target is not torch.ops.aten.arange.start_step:
        return False
    start, _, step = offsets.args[:3]
    length = step.meta["val"] if isinstance(step, torch.fx.Node) else step
    same: Any = indices.meta["val"].numel() == offsets.meta["val"].numel() * length
    return bool(start == 0 and statically_known_true(same))
