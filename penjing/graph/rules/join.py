"""Ops that lay axes end to end or take them apart: cat, stack, split, chunk, slice, select, pad."""

from __future__ import annotations

import sys

import numpy as np

from penjing.graph.axes import Axis, total
from penjing.graph.rules.table import Axes, Op, Result, has_free, rule
from penjing.graph.unify import resolve


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(op: Op) -> Axes:
    """Segments along ``dim``; the other dims are equal."""
    parts = [axes for axes in op.tensors() if not (len(axes) == 1 and axes[0].size == 0)]
    return joined(op, parts, op.dim(op.args.get("dim", 0), len(parts[0])))


def joined(op: Op, parts: list[Axes], dim: int) -> Axes:
    """The operands laid end to end along one dim."""
    result: list[Axis] = []
    for place in range(len(parts[0])):
        here = [axes[place] for axes in parts]
        if place == dim:
            result.append(total(resolve(axis) for axis in here))
            continue
        for other in here[1:]:
            op.unify(here[0], other)
        result.append(here[0])
    return tuple(result)


@rule("aten.hstack", "aten.vstack", "aten.column_stack", "aten.dstack")
def stack_by_name(op: Op) -> Axes | list[Axes]:
    """``cat`` along a dim that the name says; operands of fewer dims are reshaped before."""
    parts = op.tensors()
    name = op.why.op.split(".")[1]
    if name == "hstack":
        least, dim = 1, min(len(parts[0]), 2) - 1
    else:
        least, dim = {"vstack": (2, 0), "column_stack": (2, 1), "dstack": (3, 2)}[name]
    if any(len(axes) < least for axes in parts):
        return op.give_up("stacked operands of fewer dims")
    return joined(op, parts, dim)


@rule("aten.stack")
def stack(op: Op) -> Axes:
    """A new dim whose slots are the operands."""
    parts = op.tensors()
    x = list(op.broadcast(*parts))
    dim = int(op.args.get("dim", 0)) % (len(x) + 1)
    x.insert(dim, op.fixed(len(parts), "stacked operands"))
    return tuple(x)


@rule(
    *(
        f"aten.{name}"
        for name in [
            "split",
            "split_with_sizes",
            "chunk",
            "tensor_split",
            "unsafe_split",
            "unsafe_split_with_sizes",
            "unsafe_chunk",
            "hsplit",
            "vsplit",
            "split_copy",
            "split_with_sizes_copy",
        ]
    )
)
def split(op: Op) -> list[Axes]:
    """One dim cut into segments."""
    x = op.tensors()[0]
    dim = op.dim(op.args.get("dim", 0), len(x))
    pieces = op.cut(x[dim], [shape[dim] for shape in op.outputs])
    return [(*x[:dim], piece, *x[dim + 1 :]) for piece in pieces]


@rule("aten.unbind")
def unbind(op: Op) -> list[Axes]:
    """Every slot by itself, so all stay."""
    x = op.tensors()[0]
    dim = op.dim(op.args.get("dim", 0), len(x))
    op.freeze(x[dim], "each slot is used by itself")
    return [x[:dim] + x[dim + 1 :] for _ in op.outputs]


@rule("aten.select", "aten.select_copy")
def select(op: Op) -> Axes:
    """One slot by its number: that one stays, the others need not."""
    x = op.tensors()[0]
    dim = op.dim(op.args["dim"], len(x))
    size = x[dim].size
    if isinstance(op.args["index"], int):
        index = op.args["index"] % size
        op.cut(x[dim], [length for length in (index, 1, size - index - 1) if length])
    else:
        op.freeze(x[dim], "a slot is chosen by a computed number")
    return x[:dim] + x[dim + 1 :]


@rule("aten.slice", "aten.narrow", "aten.slice_copy")
def slice_(op: Op) -> Axes:
    """A range of slots; every k-th slot is the outer factor of ``n/k · k``."""
    x = list(op.tensors()[0])
    dim = op.dim(op.args.get("dim", 0), len(x))
    size, kept = x[dim].size, op.shape[dim]
    start = op.args.get("start")
    step = op.args.get("step", 1)
    if kept == size and step == 1:
        return tuple(x)
    if not has_free(x[dim]) or not isinstance(start, int | None) or not isinstance(step, int):
        op.freeze(x[dim], "sliced at a computed position")
        x[dim] = op.fixed(kept, "a slice of an axis that cannot change")
        return tuple(x)
    start = min(start if start >= 0 else max(start + size, 0), size) if start and start != sys.maxsize else 0
    if step == 1:
        lengths = [start, kept, size - start - kept]
        pieces = op.cut(x[dim], [length for length in lengths if length])
        x[dim] = pieces[1 if start else 0] if kept else op.fixed(0)
    elif start < step and size % step == 0 and kept == size // step:
        outer, inner = op.split(x[dim], kept, step)
        op.freeze(inner, "every k-th slot is taken")
        x[dim] = outer
    else:
        x[dim] = op.through(x[dim], np.arange(kept) * step + start)
    return tuple(x)


@rule("aten.pad", "aten.constant_pad_nd")
def pad(op: Op) -> Axes:
    """Constant slots before and after, which may go with what they meet; negative padding cuts."""
    x = list(op.tensors()[0])
    amounts = [amount if isinstance(amount, int) else None for amount in op.args["pad"]]
    constant = op.args.get("mode", "constant") == "constant"
    for number in range(len(amounts) // 2):
        dim = len(x) - 1 - number
        before, after = amounts[2 * number], amounts[2 * number + 1]
        if before == 0 and after == 0:
            continue
        if not constant or before is None or after is None or not has_free(x[dim]):
            op.freeze(x[dim], "padded with its own values or by a computed amount", "spatial")
            x[dim] = op.spatial(op.shape[dim])
            continue
        axis = x[dim]
        if before < 0 or after < 0:
            lengths = [max(-before, 0), axis.size - max(-before, 0) - max(-after, 0), max(-after, 0)]
            pieces = op.cut(axis, [length for length in lengths if length])
            axis = pieces[1 if before < 0 else 0]
        x[dim] = total([op.free(max(before, 0)), resolve(axis), op.free(max(after, 0))])
    return tuple(x)


@rule("aten.meshgrid")
def meshgrid(op: Op) -> list[Axes]:
    """Coordinates: one dim for each operand."""
    parts = [axes[0] if axes else op.fixed(1) for axes in op.tensors()]
    return [
        tuple(parts) if op.args.get("indexing", "ij") == "ij" else (parts[1], parts[0], *parts[2:])
    ] * len(op.outputs)


_PLACES = "values depend on positions along these axes"


@rule("aten.trace")
def trace(op: Op) -> list[Axes]:
    """The sum of a diagonal."""
    return op.give_up(_PLACES, "structure")


@rule("aten.tril", "aten.triu")
def triangle(op: Op) -> Result:
    """The triangle at, or right beside, the diagonal of a square: it stays one where rows and columns go
    together. Others depend on how far from the diagonal a slot was."""
    (x,) = op.tensors()
    beside = 1 if "triu" in str(op.node.target) else -1
    if x[-1].size != x[-2].size or op.args.get("diagonal", 0) not in (0, beside):
        return of_matrices(op)
    op.unify(x[-2], x[-1])
    return x


@rule("aten.linalg_matrix_exp", "aten.matrix_exp")
def of_matrices(op: Op) -> Axes:
    """Values depend on the position within each matrix; whole matrices may go."""
    (x,) = op.tensors()
    for axis in x[-2:]:
        op.freeze(axis, _PLACES)
    return x


@rule("aten.diagonal")
def diagonal(op: Op) -> Axes:
    """Two dims become one, the last; the others stay what they are."""
    (x,) = op.tensors()
    named = [op.dim(op.args.get(name, 0), len(x)) for name in ("dim1", "dim2")]
    for d in named:
        op.freeze(x[d], _PLACES)
    return (*(axis for d, axis in enumerate(x) if d not in named), op.fixed(op.shape[-1], _PLACES))


@rule("aten.diag_embed")
def diag_embed(op: Op) -> Axes:
    """The last dim becomes two; the others stay what they are."""
    (x,) = op.tensors()
    op.freeze(x[-1], _PLACES)
    named = [op.dim(op.args.get(name, 0), len(op.shape)) for name in ("dim1", "dim2")]
    others = iter(x[:-1])
    return tuple(op.fixed(size, _PLACES) if d in named else next(others) for d, size in enumerate(op.shape))


@rule("aten.cross", "aten.linalg_cross")
def cross(op: Op) -> Axes:
    """Vectors of three along one dim; the others as in a product."""
    operands = op.tensors()
    x = op.broadcast(*operands)
    d = op.args.get("dim", -1)
    d = next(d for d, size in enumerate(op.shape) if size == 3) if d is None else op.dim(d, len(x))
    for axes in operands:
        op.freeze(axes[d - len(x)], _PLACES)
    return x


@rule("aten.rot90")
def rot90(op: Op) -> Axes:
    """Two dims turn; the others stay what they are."""
    x = list(op.tensors()[0])
    for d in op.args["dims"]:
        op.freeze(x[op.dim(d, len(x))], _PLACES)
        x[op.dim(d, len(x))] = op.fixed(op.shape[op.dim(d, len(x))], _PLACES)
    return tuple(x)


@rule("aten.cartesian_prod", "aten.combinations")
def pairs(op: Op) -> list[Axes]:
    """Pairs of values."""
    return op.give_up(_PLACES, "structure")
