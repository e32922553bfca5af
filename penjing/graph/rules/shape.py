"""Ops that only rearrange dimensions: view, permute, expand, repeat, roll, flip, squeeze."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penjing.graph.axes import Axis, Leaf, Product, Sum, product, total
from penjing.graph.rules.table import Axes, Op, rule
from penjing.graph.unify import resolve, unify


@rule(
    *(
        f"aten.{name}"
        for name in [
            "view",
            "reshape",
            "flatten",
            "unflatten",
            "reshape_as",
            "view_as",
            "ravel",
            "_unsafe_view",
            "_reshape_alias",
            "view_copy",
        ]
    )
)
def reshape(op: Op) -> Axes:
    """Row-major regrouping, solved for each smallest block of dims that holds as much on both sides."""
    return regroup(op, op.tensors()[0], op.shape)


def regroup(op: Op, x: Axes, shape: Sequence[int]) -> Axes:
    """Axes of ``x`` viewed as ``shape``."""
    result: list[Axis] = []
    source = place = 0
    while place < len(shape):
        if shape[place] == 1:
            result.append(Leaf(1, "one"))
            place += 1
            continue
        block: list[Axis] = []
        sizes = [shape[place]]
        size_in, size_out = 1, shape[place]
        while size_in != size_out or (size_in == 1 and size_out == 1):
            if size_in < size_out and source < len(x):
                block.append(x[source])
                size_in *= x[source].size
                source += 1
            elif size_out < size_in and place + 1 < len(shape):
                place += 1
                sizes.append(shape[place])
                size_out *= shape[place]
            else:
                raise ValueError(f"cannot view {[axis.size for axis in x]} as {list(shape)}")
        place += 1
        whole = product(block)
        if len(sizes) == 1:
            result.append(whole)
            continue
        fresh = [Leaf(size, f"{_label(whole)}/{number}") for number, size in enumerate(sizes)]
        op.unify(product(fresh), whole)
        result.extend(resolve(leaf) for leaf in fresh)
    return tuple(result)


def _label(axis: Axis) -> str:
    return axis.label if isinstance(axis, Leaf) else ""


@rule("aten.permute", "aten.permute_copy")
def permute(op: Op) -> Axes:
    """Reorder."""
    x = op.tensors()[0]
    return tuple(x[op.dim(dim, len(x))] for dim in op.args["dims"])


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims")
def transpose(op: Op) -> Axes:
    """Swap two dims."""
    x = list(op.tensors()[0])
    names = [name for name in op.args if name != "self"]
    i, j = (op.dim(op.args[name], len(x)) for name in names[:2])
    x[i], x[j] = x[j], x[i]
    return tuple(x)


@rule("aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint")
def t(op: Op) -> Axes:
    """Matrix transpose."""
    x = op.tensors()[0]
    return (*x[:-2], *x[-2:][::-1])


@rule("aten.movedim", "aten.moveaxis")
def movedim(op: Op) -> Axes:
    """Move dims to given places."""
    x = op.tensors()[0]
    source, target = op.args["source"], op.args["destination"]
    sources = [op.dim(d, len(x)) for d in (source if isinstance(source, list | tuple) else [source])]
    targets = [op.dim(d, len(x)) for d in (target if isinstance(target, list | tuple) else [target])]
    placed = dict(zip(targets, sources, strict=True))
    rest = iter(d for d in range(len(x)) if d not in sources)
    return tuple(x[placed[d]] if d in placed else x[next(rest)] for d in range(len(x)))


@rule("aten.unsqueeze")
def unsqueeze(op: Op) -> Axes:
    """A new dim of size 1."""
    x = list(op.tensors()[0])
    x.insert(int(op.args["dim"]) % (len(x) + 1), Leaf(1, "one"))
    return tuple(x)


@rule("aten.squeeze")
def squeeze(op: Op) -> Axes:
    """Drop dims of size 1: those named, or all."""
    x = op.tensors()[0]
    dims = op.args.get("dim")
    named = dims if isinstance(dims, list | tuple) else (range(len(x)) if dims is None else [dims])
    drop = {op.dim(dim, len(x)) for dim in named}
    return tuple(axis for dim, axis in enumerate(x) if not (dim in drop and axis.size == 1))


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(op: Op) -> Axes:
    """Dims of size 1 become constant slots, which may go with what they meet."""
    x = op.tensors()[0]
    lead = len(op.shape) - len(x)
    like = op.tensors()[1] if len(op.tensors()) > 1 else ()
    result: list[Axis] = []
    for dim, size in enumerate(op.shape):
        old = x[dim - lead] if dim >= lead else None
        if old is not None and old.size == size:
            result.append(old)
        else:
            result.append(like[dim] if like else op.free(size))
    return tuple(result)


@rule("aten.broadcast_tensors")
def broadcast_tensors(op: Op) -> list[Axes]:
    """All of one shape."""
    return [op.broadcast(*op.tensors())] * len(op.outputs)


@rule("aten.repeat", "aten.tile")
def repeat(op: Op) -> Axes:
    """n copies laid end to end are ``n · axis``."""
    x = op.tensors()[0]
    rank = len(op.shape)
    ones: Axes = tuple(Leaf(1, "one") for _ in range(rank - len(x)))
    return tuple(
        axis if size == axis.size else product([op.free(size // axis.size), axis])
        for axis, size in zip((*ones, *x), op.shape, strict=True)
    )


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(op: Op) -> Axes | list[Axes]:
    """Each slot n times in a row is ``axis · n``."""
    x = list(op.tensors()[0])
    if op.args["dim"] is None:
        x = [product(x)]
    dim = op.dim(op.args["dim"] or 0, len(x))
    if x[dim].size != op.shape[dim]:
        x[dim] = product([x[dim], op.free(op.shape[dim] // x[dim].size)])
    return tuple(x)


@rule("aten.roll")
def roll(op: Op) -> Axes:
    """``(a + b)`` becomes ``(b + a)``."""
    x = list(op.tensors()[0])
    shifts, dims = op.args["shifts"], op.args["dims"]
    shifts = shifts if isinstance(shifts, list | tuple) else [shifts]
    dims = dims if isinstance(dims, list | tuple) else [dims]
    if not dims:
        for axis in x:
            op.freeze(axis, "rolled as one flat dimension")
        return tuple(x)
    for shift, d in zip(shifts, dims, strict=True):
        dim = op.dim(d, len(x))
        tail = int(shift) % x[dim].size
        if tail:
            head, last = op.cut(x[dim], [x[dim].size - tail, tail])
            x[dim] = total([last, head])
    return tuple(x)


@rule("aten.flip", "aten.fliplr", "aten.flipud")
def flip(op: Op) -> Axes:
    """The same slots in reverse."""
    x = list(op.tensors()[0])
    for d in op.args.get("dims", [1 if "fliplr" in str(op.node.target) else 0]):
        dim = op.dim(d, len(x))
        x[dim] = op.through(x[dim], np.arange(x[dim].size)[::-1])
    return tuple(x)


@rule("aten.index_select")
def index_select(op: Op) -> Axes:
    """A constant index along one dim; a channel shuffle is settled last, when it is known what it meets."""
    x = list(op.tensors()[0])
    dim = op.dim(op.args["dim"], len(x))
    index = op.constant(op.args["index"])
    own = op.axes(op.args["index"])
    if index is None:
        op.freeze(x[dim], "indexed by values that depend on the input")
        x[dim] = op.fixed(op.shape[dim], "indexed by values that depend on the input")
    elif "shuffle" in op.node.meta:
        source, shuffled = x[dim], Leaf(x[dim].size, _label(x[dim]) + "~")
        op.later(lambda: settle_shuffle(op, source, shuffled, op.node.meta["shuffle"], index.numpy()))
        x[dim] = shuffled
    else:
        x[dim] = op.through(x[dim], index.numpy())
    if own and index is not None and own[0].size == x[dim].size:
        op.unify(own[0], x[dim])
    return tuple(x)


def settle_shuffle(op: Op, source: Axis, shuffled: Axis, sizes: tuple[int, int], index: np.ndarray) -> None:
    """As an index map between sums of leaves; as transposed products where either side has products."""
    source, shuffled = resolve(source), resolve(shuffled)
    if _has_product(source) or _has_product(shuffled):
        outer, inner = op.split(source, *sizes)
        unify(shuffled, product([inner, outer]), op.why)
    else:
        unify(shuffled, op.through(source, index), op.why)


def _has_product(axis: Axis) -> bool:
    return isinstance(axis, Product) or (
        isinstance(axis, Sum) and any(_has_product(part) for part in axis.parts)
    )
