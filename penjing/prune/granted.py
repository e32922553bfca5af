"""Widths that a forward takes for granted: what to keep whole where the class cannot serve otherwise.

Attention of one head, non-local blocks and correlation volumes multiply two computed values over a width and
divide by its root, which they read from a shape. With fewer channels they would compute something else, and
no attribute says so. Such a width stays, and with it what the same forward writes into shapes by its number.
A table that a module keeps as a plain tensor (encodings of positions, made anew for longer inputs) is none of
the class's parameters or buffers, so nothing but the graph could slice it: its width stays, too. So does, in
the end, what a forward writes into shapes as a number that its module does not have (``degree + 1``, ``64``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set

from torch import fx, nn

from penjing.graph import Coupling, Graph
from penjing.graph.axes import leaves
from penjing.prune.follow import integers
from penjing.prune.made import How, given_axes, made_axes

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
    (queries and keys, two feature maps); these, and what the forwards that make them write into shapes by the
    same number (the values, where one size serves for both); these, and their heads, where the forward takes
    for granted what all heads hold together. Nothing where there are none.

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
    for path, axis, how in made_axes(graph, coupling):
        if how is not How.OTHER:
            shaped[path, axis.size] |= {leaf.id for leaf in leaves(axis)} & ids.keys()
    alike = multiplied.union(*(found for found in shaped.values() if found & multiplied))
    if alike != multiplied:
        yield {ids[leaf] for leaf in alike}
    sizes = {ids[leaf] for leaf in alike}
    heads = {other for group in coupling.groups if group.id in sizes for other in group.cofactors}
    if not heads <= sizes:
        yield sizes | heads


def written_widths(model: nn.Module, graph: Graph, coupling: Coupling) -> Iterator[set[str]]:
    """Ids of the groups to keep whole where none of `granted_widths` is enough: the widths of tables that
    modules keep as plain tensors, alone and with each of those; tables and what forwards write into shapes as
    numbers that are neither their module's nor the width of what it is given; also where they are such a
    width, maybe by chance; tables and what forwards write by a number that is also the size of something that
    stays (half of a split, where the other half is ignored). Nothing where there are none.

    Args:
        model: The original model.
        graph: Its traced graph.
        coupling: Its axes.
    """
    ids = {group.leaf: group.id for group in coupling.groups}

    def named(found: Set[int]) -> set[str]:
        return {ids[leaf] for leaf in found & ids.keys()}

    tables = named(_in_plain_tensors(model, coupling))
    beside_tables = [set[str](), *granted_widths(graph, coupling)] if tables else []
    written = [named(_written(model, graph, coupling, given=given)) for given in (False, True)]
    tried: list[set[str]] = [set()]
    for widths in (*beside_tables, *written, named(_beside_fixed(model, graph, coupling, ids.keys()))):
        if (chosen := tables | widths) not in tried:
            tried.append(chosen)
            yield chosen


def _written(model: nn.Module, graph: Graph, coupling: Coupling, *, given: bool) -> set[int]:
    """Leaves behind the sizes that forwards write into shapes and that no number of their module is.

    Args:
        model: The original model.
        graph: Its traced graph.
        coupling: Its axes.
        given: Also those that are as wide as something the module is given, whose shape it may have read.
    """
    known: dict[str, set[int]] = defaultdict(set)
    for path, module in model.named_modules():
        for _, value in integers(module):
            known[path].update(value if isinstance(value, tuple) else (value,))
    for path, axis in () if given else given_axes(graph, coupling):
        known[path].add(axis.size)
    found: set[int] = set()
    for path, axis, how in made_axes(graph, coupling):
        if axis.size not in known[path] and how in (How.SHAPED, How.SPLIT):
            found |= {leaf.id for leaf in leaves(axis)}
    return found


def _beside_fixed(model: nn.Module, graph: Graph, coupling: Coupling, free: Set[int]) -> set[int]:
    """Leaves of the groups, ``free``, behind sizes that a forward writes by a number of its module, where the
    same number is the size of a dimension that stays whole.
    """
    shaped: dict[tuple[str, int], list[set[int]]] = defaultdict(list)
    for path, axis, how in made_axes(graph, coupling):
        if how is not How.OTHER:
            shaped[path, axis.size].append({leaf.id for leaf in leaves(axis)} & free)
    numbers = {
        (path, value)
        for path, module in model.named_modules()
        for _, given in integers(module)
        for value in (given if isinstance(given, tuple) else (given,))
    }
    torn = (found for key, found in shaped.items() if key in numbers and not all(found))
    return set().union(*(group for found in torn for group in found))


def _in_plain_tensors(model: nn.Module, coupling: Coupling) -> set[int]:
    """Leaves that tensors have which are no parameters or buffers."""
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    plain = (axes for name, axes in coupling.tensors.items() if name not in named)
    return {leaf.id for axes in plain for axis in axes for leaf in leaves(axis)}


def _multiplied(graph: Graph, coupling: Coupling) -> set[int]:
    """Leaves that a product of two computed values sums over."""
    computed: set[object] = set()
    found: set[int] = set()
    for node in graph.module.graph.nodes:
        if node.op == "placeholder" or not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
        name = str(node.target).rpartition(".")[0]
        if node.op == "call_function" and name == "aten.sum":  # a product by hand: (q * k).sum(-1)
            product = node.args[0]
            if str(product.target).startswith("aten.mul.Tensor") and computed.issuperset(product.args[:2]):
                first, second = product.args[:2]
                found |= (_leaves(coupling, first) & _leaves(coupling, second)) - _leaves(coupling, node)
        if node.op != "call_function" or name not in _PRODUCTS:
            continue
        tensors = node.args[1] if name == "aten.einsum" else node.args[_PRODUCTS[name] :]
        first, second = tensors[0], tensors[-1] if name == "aten.einsum" else tensors[1]
        if first in computed and second in computed:
            found |= (_leaves(coupling, first) & _leaves(coupling, second)) - _leaves(coupling, node)
    return found


def _leaves(coupling: Coupling, node: fx.Node) -> set[int]:
    return {leaf.id for axes in coupling.values.get(node.name, ()) for axis in axes for leaf in leaves(axis)}
