"""Products of rows sorted by expert with the experts' weights, for which torch has no ONNX translation."""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import opset18 as op

_NAMES = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")


def is_grouped(node: torch.fx.Node) -> bool:
    """Whether a call multiplies rows ``(T, K)`` with weights ``(E, K, N)``, without a bias."""
    if str(node.target) not in _NAMES or len(node.args) != 3 or node.kwargs:
        return False
    rows, weight = (value.meta["val"] for value in node.args[:2])  # type: ignore[union-attr]
    return bool(rows.dim() == 2 and weight.dim() == 3)


def grouped_product(rows: Any, weight: Any, offs: Any) -> Any:
    """``[T, N]``: rows up to ``offs[0]`` times the first expert's weights, from there up to ``offs[1]`` times
    the second's. Every row is multiplied once, however many experts there are.
    """
    first = op.Constant(value_ints=[0])
    ends = op.Cast(offs, to=7)
    start, parts = first, []
    for expert in range(weight.shape[0]):
        end = op.Slice(ends, op.Constant(value_ints=[expert]), op.Constant(value_ints=[expert + 1]), first)
        own = op.Slice(rows, start, end, first)
        parts.append(op.MatMul(own, op.Gather(weight, op.Constant(value_int=expert), axis=0)))
        start = end
    return op.Concat(*parts, axis=0)
