"""Reading a traced graph: what a node is given, who reads it, and parameters that come turned."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, fx

from penjing.graph.shuffle import swapped_order
from penjing.graph.solve import bind

COPIES = {
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.to.dtype",
    "aten.to.dtype_layout",
}
_RESHAPES = {"aten.reshape.default", "aten.view.default"}


def is_one_of(node: fx.Node, ops: Collection[str]) -> bool:
    """Whether a node calls one of these ops."""
    return str(node.target) in ops


def filled(node: fx.Node) -> list[Any]:
    """Arguments by position, defaults filled in."""
    return list(bind(node).values())


def only_reader(node: fx.Node) -> fx.Node | None:
    """The node that reads this one, where it is the only one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value in the trace."""
    return tuple(node.meta["val"].shape)


def rank_of(node: Any) -> int | None:
    """How many dimensions a node's value has; None where it is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, Tensor) else None


def same_type(node: fx.Node, before: fx.Node) -> bool:
    """Whether the values of two nodes are of one number format."""
    mine, its = node.meta.get("val"), before.meta.get("val")
    return isinstance(mine, Tensor) and isinstance(its, Tensor) and mine.dtype == its.dtype


def parameter(node: Any, readers: int | None = 1) -> tuple[str, tuple[int | None, ...]] | None:
    """The tensor that a node hands on to one reader, and its dimension behind each of the node's.

    Args:
        node: The node.
        readers: How often the tensor itself is read; None takes any number.
    """
    steps: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.op == "call_function" and node.args:
        if len(node.users) != 1:
            return None
        steps.append(node)
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr" or readers not in (None, len(node.users)):
        return None
    rank = rank_of(node)
    dims: tuple[int | None, ...] | None = None if rank is None else tuple(range(rank))
    before = node
    for step in reversed(steps):
        dims = None if dims is None else _turned(step, before, dims)
        before = step
    return None if dims is None else (str(node.target), dims)


def _turned(step: fx.Node, before: fx.Node, dims: tuple[int | None, ...]) -> tuple[int | None, ...] | None:
    """The dimensions behind an op that only turns or copies; None for any other op."""
    name = str(step.target)
    if name in COPIES:
        return dims if same_type(step, before) else None
    if (order := order_of(step, len(dims))) is not None:
        return tuple(dims[at] for at in order)
    if name not in _RESHAPES:
        return None
    # only sizes of 1 may come and go
    old = [dim for dim, size in zip(dims, shape_of(before), strict=True) if size != 1]
    sizes = [size for size in shape_of(before) if size != 1]
    if sizes != [size for size in shape_of(step) if size != 1]:
        return None
    real = iter(old)
    return tuple(None if size == 1 else next(real) for size in shape_of(step))


def order_of(node: fx.Node, rank: int) -> tuple[int, ...] | None:
    """An op that permutes: its input's dimensions in the order of its output; None for any other op."""
    if is_one_of(node, ("aten.t.default", "aten.numpy_T.default")):
        return tuple(reversed(range(rank)))
    if is_one_of(node, ("aten.permute.default", "aten.transpose.int")):
        return tuple(swapped_order(node))
    return None
