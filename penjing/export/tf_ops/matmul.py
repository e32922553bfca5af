"""Matrix products."""

from __future__ import annotations

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.few import in_few
from penjing.export.tf_ops.node import Node, op, plain
from penjing.export.tf_ops.value import Tensor, Value


@op("MatMul")
def _matmul(node: Node) -> Value:
    a, b = node.value(0), node.value(1)
    rank_a, rank_b = node.rank(0), node.rank(1)
    if rank_a == 1 or rank_b == 1:
        return plain(_with_vectors(a.plain(), b.plain(), rank_a, rank_b))
    if rank_b == 2 and rank_a > 2:
        return plain(_as_one_matrix(a.plain(), b.plain()))
    factors = [a.plain(), b.plain()]
    if factors[0].shape[:-2] != factors[1].shape[:-2]:
        return plain(tf.matmul(*factors))
    return plain(in_few(lambda matrices, _: tf.matmul(*matrices), factors, [rank_a - 2, rank_a - 1]))


def _with_vectors(a: Tensor, b: Tensor, rank_a: int, rank_b: int) -> Tensor:
    a = a[tf.newaxis, :] if rank_a == 1 else a
    b = b[:, tf.newaxis] if rank_b == 1 else b
    out = tf.matmul(a, b)
    out = tf.squeeze(out, -1) if rank_b == 1 else out
    return tf.squeeze(out, -1 if rank_b == 1 else -2) if rank_a == 1 else out


def _as_one_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Fold the batch dimensions of ``a`` into its rows: one large product instead of many small ones."""
    shape = a.shape.as_list()
    if shape[-1] is None or sum(dim is None for dim in shape) > 1:
        return tf.matmul(a, b)
    flat = tf.matmul(tf.reshape(a, [-1, shape[-1]]), b)
    lead = [-1 if dim is None else dim for dim in shape[:-1]]
    width = b.shape[-1] if b.shape[-1] is not None else tf.shape(b)[-1]
    return tf.reshape(flat, [*lead, width])


@op("Gemm")
def _gemm(node: Node) -> Value:
    a = node.x(0)
    if node.attr("transA", 0):
        a = tf.transpose(a)
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    out = tf.matmul(a, _matrix(node))
    out = out if alpha == 1.0 else out * alpha
    if node.has(2) and beta != 0.0:
        bias = node.x(2)
        out = out + (bias if beta == 1.0 else bias * beta)
    return plain(out)


def _matrix(node: Node) -> Tensor:
    weight = node.value(1)
    if not node.attr("transB", 0):
        return weight.plain()
    if weight.const is None and weight.quantized is None:
        return tf.transpose(weight.plain())
    return weight.mapped("transposed", lambda w_OI: np.ascontiguousarray(w_OI.T))


@op("Einsum")
def _einsum(node: Node) -> Value:
    equation = node.text("equation", "")
    return plain(tf.einsum(equation.replace(" ", ""), *[node.x(i) for i in range(len(node.inputs))]))
