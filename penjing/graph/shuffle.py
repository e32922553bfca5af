"""Channel shuffles, written view–transpose–view, become one index, so that any channels can stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
RESHAPES = {
    "aten.view.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten._unsafe_view.default",
}
SPLITS = RESHAPES | {"aten.unflatten.int"}
COPIES = {"aten.contiguous.default", "aten.clone.default", "aten.alias.default"}
SWAPS = {"aten.permute.default", "aten.transpose.int", "aten.swapaxes.default"}


def fuse_shuffles(graph: fx.Graph) -> dict[str, Tensor]:
    """Replace each shuffle ``[…, a·b, …] → […, a, b, …] → […, b, a, …] → […, b·a, …]`` by an index_select.

    The new node's ``meta["shuffle"]`` is ``(a, b)``.

    Returns:
        The int64 index constants added, by get_attr name.
    """
    constants: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        found = _match(node)
        if found is None:
            continue
        x, dim, a, b = found
        name = f"shuffle_index_{len(constants)}"
        constants[name] = torch.arange(a * b).reshape(a, b).t().reshape(-1).contiguous()
        with graph.inserting_before(node):
            index = graph.create_node("get_attr", name)
            index.meta["val"] = constants[name]
            new = graph.call_function(aten.index_select.default, (x, dim, index))
        new.meta = {**node.meta, "shuffle": (a, b)}
        node.replace_all_uses_with(new)
        _erase_chain(graph, node, x)
    return constants


def _erase_chain(graph: fx.Graph, node: fx.Node, stop: fx.Node) -> None:
    while node is not stop and not node.users:
        before = node.args[0]
        assert isinstance(before, fx.Node)
        graph.erase_node(node)
        node = before


def _shape(node: Any) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _behind(node: Any) -> Any:
    while isinstance(node, fx.Node) and str(node.target) in COPIES:
        node = node.args[0]
    return node


def _match(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    if node.op != "call_function" or str(node.target) not in RESHAPES:
        return None
    swap = _behind(node.args[0])
    if not isinstance(swap, fx.Node) or str(swap.target) not in SWAPS or len(swap.users) != 1:
        return None
    split = _behind(swap.args[0])
    if not isinstance(split, fx.Node) or str(split.target) not in SPLITS or len(split.users) != 1:
        return None
    x = split.args[0]
    if not isinstance(x, fx.Node):
        return None
    order = swapped_order(swap)
    before, between, after = _shape(x), _shape(split), _shape(node)
    moved = [dim for dim, source in enumerate(order) if dim != source]
    if len(between) != len(before) + 1 or len(moved) != 2 or moved[1] != moved[0] + 1 or before != after:
        return None
    dim = moved[0]
    a, b = between[dim], between[dim + 1]
    if not (isinstance(a, int) and isinstance(b, int) and isinstance(before[dim], int)) or min(a, b) < 2:
        return None
    if between[:dim] != before[:dim] or between[dim + 2 :] != before[dim + 1 :] or a * b != before[dim]:
        return None
    return x, dim, a, b


def swapped_order(swap: fx.Node) -> list[int]:
    """The dimensions of what an op of `SWAPS` permutes, in the order of its output."""
    rank = len(_shape(swap))
    if str(swap.target) == "aten.permute.default":
        return [int(dim) % rank for dim in swap.args[1]]  # type: ignore[union-attr, arg-type]
    order = list(range(rank))
    first, second = int(swap.args[1]) % rank, int(swap.args[2]) % rank  # type: ignore[arg-type]
    order[first], order[second] = order[second], order[first]
    return order
