"""Quantized files: numbers are rounded as the file says, in float."""

from __future__ import annotations

import torch
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, dtype_of, op


def _along(node: Node, values: Tensor, x: Tensor) -> Tensor:
    """Scales or zero points, one an axis position, shaped to broadcast against ``x``."""
    if values.numel() == 1:
        return values.reshape(())
    if values.ndim != 1 or node.attr("block_size", 0):
        raise node.error("it quantizes in blocks")
    axis = int(node.attr("axis", 1)) % x.ndim
    return values.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


@op("QuantizeLinear")
def _quantize(node: Node) -> Value:
    x, scale, zero = node.x(0), node.x(1), node.optional(2)
    kind = zero.dtype if zero is not None else dtype_of(node, int(node.attr("output_dtype", 0)) or 2)
    levels = torch.round(x / _along(node, scale, x))
    levels = levels if zero is None else levels + _along(node, zero, x).to(levels.dtype)
    limits = torch.iinfo(kind)
    return levels.clamp(limits.min, limits.max).to(kind)


@op("DequantizeLinear")
def _dequantize(node: Node) -> Value:
    x, scale, zero = node.x(0), node.x(1), node.optional(2)
    levels = x.to(scale.dtype)
    levels = levels if zero is None else levels - _along(node, zero, x).to(scale.dtype)
    return levels * _along(node, scale, x)


@op("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node) -> list[Value]:
    x = node.x()
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255.0
    zero = torch.round((0.0 - low) / scale).clamp(0, 255)
    return [(torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)]
