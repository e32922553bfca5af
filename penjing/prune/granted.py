"""Widths that a forward takes for granted: what to keep whole where the class cannot serve otherwise.

Attention of one head, non-local blocks and correlation volumes multiply two computed values over a width and
divide by its root, which they read from a shape. With fewer channels they would compute something else, and
no attribute says so. Such a width stays, and with it what the same forward writes into shapes by its number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import fx

from penjing.graph import Coupling, Graph
from penjing.graph.axes import leaves
from penjing.prune.follow import WEIGHT_SHAPE_OP, made_axes

_PRODUCTS = {
    "aten.matmul": 0,
    "aten.mm": 0,
    "aten.bmm": 0,
    "aten.baddbmm": 1,
    "aten.einsum": 0,
    "aten.scaled_dot_product_attention": 0,
}
"""Products of two tensors, and the place of the first of them."""


def granted_widths(graph: Graph, coupling: Coupling) -> Iterator[set[str]]:
    """Ids of the groups to keep whole, the fewest first: the widths over which computed values are multiplied
    (queries and keys, two feature maps); these, and what the forwards that make them write into shapes by
    the same number (the values, where one size serves for both); these, and their heads, where the forward
    takes for granted what all heads hold together. Nothing where there are none.

    Args:
        graph: The traced network.
        coupling: Its axes.
    """
    ids = {group.leaf: group.id for group in coupling.groups}
    multiplied = {leaf for leaf in _multiplied(graph, coupling) if leaf in ids}
    if not multiplied:
        return
    yield {ids[leaf] for leaf in multiplied}
    shaped: dict[tuple[str, int], set[int]] = defaultdict(set)
    for path, axis, weight, _ in made_axes(graph, coupling):
        if weight == WEIGHT_SHAPE_OP:
            shaped[path, axis.size] |= {leaf.id for leaf in leaves(axis)} & ids.keys()
    alike = multiplied.union(*(found for found in shaped.values() if found & multiplied))
    if alike != multiplied:
        yield {ids[leaf] for leaf in alike}
    sizes = {ids[leaf] for leaf in alike}
    heads = {other for group in coupling.groups if group.id in sizes for other in group.cofactors}
    if not heads <= sizes:
        yield sizes | heads


def _multiplied(graph: Graph, coupling: Coupling) -> set[int]:
    """Leaves that a product of two computed values sums over."""
    computed: set[object] = set()
    found: set[int] = set()
    for node in graph.module.graph.nodes:
        if node.op == "placeholder" or not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
        name = str(node.target).rpartition(".")[0]
        if node.op != "call_function" or name not in _PRODUCTS:
            continue
        tensors = node.args[1] if name == "aten.einsum" else node.args[_PRODUCTS[name] :]
        first, second = tensors[0], tensors[-1] if name == "aten.einsum" else tensors[1]
        if first in computed and second in computed:
            found |= (_leaves(coupling, first) & _leaves(coupling, second)) - _leaves(coupling, node)
    return found


def _leaves(coupling: Coupling, node: fx.Node) -> set[int]:
    return {leaf.id for axes in coupling.values.get(node.name, ()) for axis in axes for leaf in leaves(axis)}
