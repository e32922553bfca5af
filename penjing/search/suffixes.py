"""What a network answers without some slots of one group, computed from the first op that the group reaches.

Everything before that op is as in the original, so it is computed once: the original is run node by node, and
where a group begins, what is alive at that point is where the masked runs of that group start from.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from penjing.graph import Coupling, Graph, Group, leaves
from penjing.graph.inputs import flat_inputs
from penjing.prune.masked.reference import MaskedInterpreter
from penjing.prune.ranges import Positions

Answer = Callable[[Positions], Any]
"""Kept slots of one group → the output without the others."""


def visit_groups(
    graph: Graph,
    coupling: Coupling,
    groups: Iterable[Group],
    inputs: Any,
    visit: Callable[[Group, Answer], None],
) -> None:
    """Call ``visit`` once for each group, in the order in which the network reaches them.

    Args:
        graph: The traced network.
        coupling: Its axes.
        groups: The groups to visit; one that no op reads is left out.
        inputs: A tensor, a tuple or a dict.
        visit: Given the group and the function that answers as the pruned network would; the function may be
            called any number of times, but only before ``visit`` returns.
    """
    flat = flat_inputs(graph.module, inputs)
    beginnings = first_nodes(graph, coupling)
    visits: dict[fx.Node, list[Group]] = defaultdict(list)
    for group in groups:
        if group.leaf in beginnings:
            visits[beginnings[group.leaf]].append(group)

    def pause(node: fx.Node, alive: Mapping[fx.Node, Any]) -> None:
        if node not in visits:
            return
        before = dict.fromkeys(_computed_before(node))
        for group in visits[node]:

            def answer(kept: Positions, leaf: int = group.leaf) -> Any:
                # A copy that keeps who shares memory with whom: ops in place may follow.
                start = copy.deepcopy(list(alive.values()))
                known = before | dict(zip(alive, start, strict=True))
                return MaskedInterpreter(graph, coupling, {leaf: kept}).run(*flat, initial_env=known)

            visit(group, answer)

    with torch.no_grad():
        _Walk(graph.module, pause).run(*copy.deepcopy(flat))


def first_nodes(graph: Graph, coupling: Coupling) -> dict[int, fx.Node]:
    """By leaf id, the first op that has the leaf in an axis of its inputs, parameters or outputs."""
    found: dict[int, fx.Node] = {}
    for node in graph.module.graph.nodes:
        if node.op not in ("call_function", "output"):
            continue
        for leaf in _touching(node, coupling):
            found.setdefault(leaf, node)
    return found


def _touching(node: fx.Node, coupling: Coupling) -> set[int]:
    near = (node, *node.all_input_nodes)
    values = [axes for n in near for axes in coupling.values.get(n.name, ())]
    values += [coupling.tensors.get(str(n.target), ()) for n in near if n.op == "get_attr"]
    return {leaf.id for axes in values for axis in axes for leaf in leaves(axis)}


def _computed_before(node: fx.Node) -> list[fx.Node]:
    """Nodes that a run from this one on does not compute; parameters are read again, they may be masked."""
    before = []
    for other in node.graph.nodes:
        if other is node:
            break
        if other.op != "get_attr":
            before.append(other)
    return before


class _Walk(fx.Interpreter):
    """Runs the original and pauses before every node, with what is alive there."""

    def __init__(
        self, module: fx.GraphModule, pause: Callable[[fx.Node, Mapping[fx.Node, Any]], None]
    ) -> None:
        super().__init__(module)
        self.pause = pause

    def run_node(self, n: fx.Node) -> Any:
        """Pause, then compute the node."""
        self.pause(n, {node: value for node, value in self.env.items() if node.op != "get_attr"})
        return super().run_node(n)
