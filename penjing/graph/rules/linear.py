"""Contractions: linear, the matmul family, einsum, attention."""

from __future__ import annotations

import torch

from penjing.graph.axes import Axis
from penjing.graph.rules.table import Axes, Op, has_free, rule

_GROUPED_ROW = 16
"""Bytes of which torch's grouped product wants its rows to be a multiple, there and in its gradients."""


@rule("aten.linear")
def linear(op: Op) -> Axes:
    """x (…, I) with weight (O, I)."""
    x, weight, bias = (op.axes(op.args[name]) for name in ("input", "weight", "bias"))
    op.unify(x[-1], weight[-1])
    out = weight[:-1]
    for axis in bias:
        if axis.size > 1 and out:
            op.unify(axis, out[0])
    return (*x[:-1], *out)


@rule("aten.bilinear")
def bilinear(op: Op) -> Axes:
    """x (…, I) and y (…, J) with weight (O, I, J)."""
    x, y, weight, bias = (op.axes(op.args[name]) for name in ("input1", "input2", "weight", "bias"))
    op.unify(x[-1], weight[1])
    op.unify(y[-1], weight[2])
    op.broadcast(weight[:1], bias)
    return (*op.broadcast(x[:-1], y[:-1]), weight[0])


def multiply(op: Op, a: Axes, b: Axes) -> Axes:
    """Batched matrix product, with the conventions of ``torch.matmul`` for vectors."""
    if len(a) == 1 or len(b) == 1:
        op.unify(a[-1], b[-1] if len(b) == 1 else b[-2])
        return (*a[:-1], *(b[:-2] + b[-1:] if len(b) > 1 else ()))
    batch = op.broadcast(a[:-2], b[:-2])
    op.unify(a[-1], b[-2])
    if any(has_free(axis) for axis in batch):
        for axis in batch:
            op.mark(axis, "head")
        op.mark(a[-1], "head_dim")
        op.mark(b[-1], "head_dim")
    return (*batch, a[-2], b[-1])


@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot")
def matmul(op: Op) -> Axes:
    """(…, M, K) with (…, K, N)."""
    return multiply(op, *op.tensors()[:2])


@rule("aten.addmm", "aten.baddbmm", "aten.addmv")
def addmm(op: Op) -> Axes:
    """``bias + a @ b``."""
    bias, a, b = op.tensors()[:3]
    return op.broadcast(multiply(op, a, b), bias)


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped(op: Op) -> Axes | list[Axes]:
    """Rows (T, K) sorted by expert with the experts' weights (E, K, N); every expert keeps the same slots."""
    x, weight = op.tensors()[:2]
    if len(x) != 2 or len(weight) != 3:
        return op.give_up("a grouped product of other than rows with a stack of weights")
    op.freeze(weight[0], "experts are chosen by the input")
    op.unify(x[1], weight[1])
    value = op.node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.element_size() < _GROUPED_ROW:
        for axis in weight[1:]:
            op.in_steps(axis, _GROUPED_ROW // value.element_size())
    op.broadcast((weight[2],), op.axes(op.args.get("bias"))[-1:])
    return (x[0], weight[2])


@rule("aten.linalg_multi_dot", "aten.chain_matmul")
def chain(op: Op) -> Axes:
    """One matrix product after the other."""
    product, *rest = op.tensors()
    for factor in rest:
        product = multiply(op, product, factor)
    return product


@rule("aten.inner")
def inner(op: Op) -> Axes:
    """(…, K) with (…, K)."""
    a, b = op.tensors()[:2]
    if not a or not b:  # a scalar scales
        return a or b
    op.unify(a[-1], b[-1])
    return (*a[:-1], *b[:-1])


@rule("aten.tensordot")
def tensordot(op: Op) -> Axes:
    """The named dims of both are contracted; what is left of them stands one behind the other."""
    a, b = op.axes(op.args["self"]), op.axes(op.args["other"])
    of_a = [op.dim(dim, len(a)) for dim in op.args["dims_self"]]
    of_b = [op.dim(dim, len(b)) for dim in op.args["dims_other"]]
    for here, there in zip(of_a, of_b, strict=True):
        op.unify(a[here], b[there])
    left = [axis for dim, axis in enumerate(a) if dim not in of_a]
    right = [axis for dim, axis in enumerate(b) if dim not in of_b]
    for laid_out in (left, right, [a[dim] for dim in of_a]):
        op.together(laid_out)
    return (*left, *right)


@rule("aten.outer")
def outer(op: Op) -> Axes:
    """(M) with (N) to (M, N)."""
    a, b = op.tensors()[:2]
    return (*a, *b)


@rule("aten.einsum")
def einsum(op: Op) -> Axes:
    """Equal letters are equal axes; the ellipsis broadcasts."""
    equation = str(op.args["equation"]).replace(" ", "")
    operands = [op.axes(node) for node in op.args["tensors"]]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    letters: dict[str, Axis] = {}
    spread: list[Axes] = []
    for term, axes in zip(terms, operands, strict=True):
        head, dots, tail = term.partition("...")
        stop = len(axes) - len(tail)
        if dots:
            spread.append(axes[len(head) : stop])
        named = (
            [*zip(head, axes[: len(head)], strict=True), *zip(tail, axes[stop:], strict=True)]
            if dots
            else list(zip(term, axes, strict=True))
        )
        for letter, axis in named:
            known = letters.get(letter)
            if known is None or known.size == 1:
                letters[letter] = axis
            elif axis.size != 1:
                op.unify(known, axis)
    middle = op.broadcast(*spread) if spread else ()
    if not arrow:
        joined = "".join(terms).replace("...", "")
        right = ("..." if spread else "") + "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    if len(terms) == 2:
        first, second, kept = (letters.keys() & set(term) for term in (*terms, right))
        _mark_heads(op, first, second, kept, letters)
        for laid_out in (first & second - kept, first & kept - second, second & kept - first):
            op.together(letters[c] for c in sorted(laid_out))
    head, dots, tail = right.partition("...")
    return (*(letters[c] for c in head), *(middle if dots else ()), *(letters[c] for c in tail))


def _mark_heads(op: Op, first: set[str], second: set[str], kept: set[str], letters: dict[str, Axis]) -> None:
    """What `multiply` says of a batched product: letters that both share and keep count it."""
    named = first | second
    batch = first & second & kept
    if any(has_free(letters[c]) for c in batch):
        for c in named:
            if c in batch:
                op.mark(letters[c], "head")
            elif c in second:
                op.mark(letters[c], "head_dim")


@rule("aten.scaled_dot_product_attention")
def attention(op: Op) -> Axes:
    """softmax(q kᵀ) v over heads; query heads are groups · kv heads under grouped-query attention."""
    q, k, v, mask = (op.axes(op.args[name]) for name in ("query", "key", "value", "attn_mask"))
    op.unify(q[-1], k[-1])
    op.unify(k[-2], v[-2])
    op.mark(k[-2], "softmax")
    lead = op.broadcast(k[:-2], v[:-2])
    if op.args.get("enable_gqa") and q[-3].size != k[-3].size:
        outer, _ = op.split(q[-3], k[-3].size, q[-3].size // k[-3].size)
        op.unify(outer, lead[-1])
        lead = (*op.broadcast(q[:-3], lead[:-1]), q[-3])
    else:
        lead = op.broadcast(q[:-2], lead)
    if mask:
        op.broadcast((*lead, q[-2], k[-2]), mask)
    for axis in lead[1:]:
        op.mark(axis, "head")
    op.mark(q[-1], "head_dim")
    op.mark(v[-1], "head_dim")
    return (*lead, q[-2], v[-1])
