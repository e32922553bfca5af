"""Looking things up: embedding, advanced indexing, gather, scatter."""

from __future__ import annotations

import torch

from penjing.graph.axes import Axis
from penjing.graph.rules.table import Axes, Op, rule


@rule("aten.embedding")
def embedding(op: Op) -> Axes:
    """A row of the table for each index."""
    weight, indices = op.axes(op.args["weight"]), op.axes(op.args["indices"])
    op.freeze(weight[0], "rows of an embedding are chosen by the input")
    return (*indices, weight[1])


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(op: Op) -> list[Axes]:
    """Sums or means of rows of the table, one for each bag; the other outputs are its bookkeeping."""
    weight = op.axes(op.args["weight"])
    op.freeze(weight[0], "rows of an embedding are chosen by the input")
    bags, *rest = op.outputs
    text = "bags of an embedding"
    return [
        (op.fixed(bags[0], text), weight[1]),
        *(tuple(op.fixed(n, text) for n in shape) for shape in rest),
    ]


@rule("aten.index", "aten._unsafe_index")
def index(op: Op) -> Axes:
    """``x[:, idx]``: one constant index is an index map; any other use keeps the indexed dims whole."""
    x = list(op.axes(op.args["self"]))
    indices = list(op.args["indices"])
    used = [dim for dim, node in enumerate(indices) if node is not None]
    if len(used) == 1:
        dim = used[0]
        value = op.constant(indices[dim])
        own = op.axes(indices[dim])
        if value is not None and value.dtype == torch.int64 and value.dim() == 1:
            axis = op.through(x[dim], (value % x[dim].size).numpy())
            if own:
                op.unify(own[0], axis)
            x[dim] = axis
            return tuple(x)
    text = "indexed by several or computed indices"
    for dim in used:
        op.freeze(x[dim], text)
        for axis in op.axes(indices[dim]):
            op.freeze(axis, text)
    rest = [axis for dim, axis in enumerate(x) if dim not in used]
    between = len(op.shape) - len(rest)
    contiguous = used == list(range(used[0], used[-1] + 1))
    place = used[0] if contiguous else 0
    new: list[Axis] = [op.fixed(size, text) for size in op.shape[place : place + between]]
    return (*rest[:place], *new, *rest[place:])


@rule("aten.gather", "aten.take_along_dim")
def gather(op: Op) -> Axes:
    """Slots along a dim chosen by values; the other dims pass where they are whole."""
    x, chosen = op.tensors()[:2]
    dim = op.dim(op.args["dim"], len(x))
    op.freeze(x[dim], "gathered by computed positions")
    op.freeze(chosen[dim], "gathered by computed positions")
    for place, (a, b) in enumerate(zip(x, chosen, strict=True)):
        if place != dim:
            op.unify(a, b)
    return chosen


@rule(
    "aten.scatter",
    "aten.scatter_add",
    "aten.scatter_reduce",
    "aten.index_add",
    "aten.index_copy",
    "aten.index_fill",
)
def scatter(op: Op) -> Axes:
    """Writes at computed positions along one dim; the others pass where they are whole."""
    x = op.axes(op.args["self"])
    dim, text = op.dim(op.args["dim"], len(x)), "written at computed positions"
    op.freeze(x[dim], text)
    for name in ("index", "src", "source"):
        other = op.axes(op.args.get(name))
        for place, axis in enumerate(other):
            if len(other) != len(x) or place == dim:
                op.freeze(axis, text)
            elif axis.size == x[place].size:
                op.unify(axis, x[place])
            else:
                op.freeze(axis, text)
                op.freeze(x[place], text)
    return x


@rule("aten.index_put")
def index_put(op: Op) -> Axes:
    """Writes at computed positions of some dims; the others pass."""
    x, values = op.axes(op.args["self"]), op.axes(op.args["values"])
    text = "written at computed positions"
    used: set[int] = set()
    dim = 0
    for node in op.args["indices"]:
        own = op.axes(node)
        is_mask = op.is_tensor(node) and node.meta["val"].dtype in (torch.bool, torch.uint8)
        width = len(own) if is_mask else 1  # a mask takes as many dims as it has
        if node is not None:
            used.update(range(dim, dim + width))
        for axis in own:
            op.freeze(axis, text)
        dim += width
    for place in used:
        op.freeze(x[place], text)
    tail = x[max(used, default=-1) + 1 :]
    for back, axis in enumerate(reversed(values), start=1):
        if back <= len(tail) and axis.size == tail[-back].size:
            op.unify(axis, tail[-back])
        elif axis.size > 1:
            op.freeze(axis, text)
    before = x[: len(x) - len(tail)]
    if len(used) < len(before):  # where the values of dims before or between go is not followed
        for axis in before:
            op.freeze(axis, text)
    return x


@rule("aten.slice_scatter", "aten.select_scatter", "aten.masked_scatter", "aten.put")
def overwrite(op: Op) -> list[Axes]:
    """Writes into a part: everything stays."""
    return op.give_up("written at computed positions")


@rule(
    "aten.one_hot",
    "aten.nonzero",
    "aten.masked_select",
    "aten.bincount",
    "aten.searchsorted",
    "aten.bucketize",
    "aten.unique_consecutive",
    "aten._unique2",
    "aten.multinomial",
    "torchvision.nms",
)
def data_dependent(op: Op) -> list[Axes]:
    """Sizes or positions depend on values."""
    return op.give_up("positions depend on values")
