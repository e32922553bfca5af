"""Matrix products, Einsum and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, dtype_of, op


@op("MatMul")
def _matmul(node: Node) -> Value:
    return torch.matmul(node.x(0), node.x(1))


@op("Gemm")
def _gemm(node: Node) -> Value:
    a, b, c = node.x(0), node.x(1), node.optional(2)
    a = a.t() if node.attr("transA", 0) else a
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    if alpha == 1.0 and (c is None or (beta == 1.0 and c.ndim == 1 and c.shape[0] == _outputs(node, b))):
        return F.linear(a, b if node.attr("transB", 0) else b.t(), c)
    out = alpha * torch.matmul(a, b.t() if node.attr("transB", 0) else b)
    return out if c is None else out + beta * c


def _outputs(node: Node, b: Tensor) -> int:
    return b.shape[0 if node.attr("transB", 0) else 1]


@op("Einsum")
def _einsum(node: Node) -> Value:
    result: Tensor = torch.einsum(node.text("equation", ""), *[node.x(i) for i in range(len(node.inputs))])
    return result


@op("Attention")
def _attention(node: Node) -> Value:
    """Op set 23, without a cache: (batch, heads, length, width) or (batch, length, heads · width)."""
    if node.num_outputs > 1 or node.has(4) or node.has(5) or node.attr("softcap", 0.0):
        raise node.error("a cache, a soft cap or its scores are used")
    q, k, v = node.x(0), node.x(1), node.x(2)
    flat = q.ndim == 3
    if flat:
        heads, kv_heads = int(node.attr("q_num_heads")), int(node.attr("kv_num_heads"))
        q = q.reshape(*q.shape[:2], heads, -1).transpose(1, 2)
        k, v = (t.reshape(*t.shape[:2], kv_heads, -1).transpose(1, 2) for t in (k, v))
    scale = node.attr("scale")
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=node.optional(3),
        is_causal=bool(node.attr("is_causal", 0)),
        scale=None if scale is None else float(scale),
    )
    return out.transpose(1, 2).flatten(2) if flat else out


@op("MatMulInteger")
def _matmul_integer(node: Node) -> Value:
    a, b = node.x(0).to(torch.int32), node.x(1).to(torch.int32)
    for index, side in ((2, "a"), (3, "b")):
        zero = node.optional(index)
        if zero is None:
            continue
        zero = zero.to(torch.int32)
        if side == "a":
            a = a - (zero[..., None] if zero.ndim else zero)
        else:
            b = b - zero
    # whole numbers below 2**53 are exact in double precision, which has a fast product
    return torch.matmul(a.double(), b.double()).to(dtype_of(node, 6))
