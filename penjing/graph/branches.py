"""Residual branches: the ``f`` of ``x + f(x)``, and a graph without some of them.

Taken out whole, a branch leaves its shortcut: the network gets shallower instead of narrower ("depth
pruning"; Huang et al. 2016, *Deep networks with stochastic depth*, showed that residual networks bear it).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from penjing.errors import PruneError
from penjing.graph.trace import Graph
from penjing.graph.tree import graph_module

_ADDS = frozenset({"aten.add.Tensor", "aten.add_.Tensor"})
_PASSING = ("aten.to.", "aten.alias.", "aten.contiguous.")  # give what they are given, as Keras has them
_IDEMPOTENT = frozenset({"aten.relu.default", "aten.relu_.default"})


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    Attributes:
        name: The module path that its weights share, made unique.
        total: Name of the addition's node.
        skip: Name of the node that stays when the branch goes.
        nodes: Names of the nodes that only the branch needs.
        tensors: Names of the parameters and buffers that only the branch needs, aliases too.
    """

    name: str
    total: str
    skip: str
    nodes: frozenset[str]
    tensors: tuple[str, ...]


def find_branches(graph: Graph) -> tuple[Branch, ...]:
    """Every ``x + f(x)`` whose ``f`` has a weight of its own, in the order of computation."""
    nodes = list(graph.module.graph.nodes)
    place = {node: at for at, node in enumerate(nodes)}
    before: dict[fx.Node, int] = {}  # everything a node is computed from, as bits by place
    found: list[tuple[fx.Node, fx.Node, list[fx.Node]]] = []
    for node in nodes:
        before[node] = 0
        for source in node.all_input_nodes:
            before[node] |= before[source] | 1 << place[source]
        skip, branch = _ends(node, lambda a, b: bool(before[b] >> place[a] & 1))
        if skip is not None and branch is not None:
            found.append((node, skip, _needed_only_by(node, branch, nodes[: place[branch]])))
    made = []
    for total, skip, own in found:
        reads = [str(node.target) for node in own if node.op == "get_attr"]
        weights = [name for name in reads if name in graph.params and graph.params[name].dim() > 1]
        if weights:
            names = frozenset(node.name for node in own)
            made.append(
                Branch(_shared_path(weights), total.name, skip.name, names, _tensors(graph, set(reads)))
            )
    return _named_apart(made)


def chosen(branches: Iterable[Branch], names: Sequence[str]) -> list[Branch]:
    """The branches of these names, in the order of the names.

    Raises:
        PruneError: for a name that no branch has.
    """
    known = {branch.name: branch for branch in branches}
    for name in names:
        if name not in known:
            raise PruneError(
                f"no residual branch is called {name!r}",
                remedy=f"There are {', '.join(known)}" if known else "This network has no residual branches",
            )
    return [known[name] for name in dict.fromkeys(names)]


def cut(graph: Graph, branches: Sequence[Branch]) -> Graph:
    """The graph in which each of these sums is its shortcut alone; nodes that stay keep their names.

    The graph given is not changed; tensors are shared with it. A ReLU of a ReLU becomes one.
    """
    nodes = copy.deepcopy(graph.module.graph)
    by_name = {node.name: node for node in nodes.nodes}
    place = {node.name: at for at, node in enumerate(nodes.nodes)}
    for branch in sorted(branches, key=lambda one: place[one.total]):  # a shortcut may be a sum that goes too
        total = by_name[branch.total]
        a, b = total.args[:2]
        dead = {node for node in total.all_input_nodes if node.name in branch.nodes}
        skip = next(x for x in (a, b) if isinstance(x, fx.Node) and x not in dead)
        for user in list(total.users):
            _leave_alone(user, total)
            user.replace_input_with(total, skip)
            if str(user.target) in _IDEMPOTENT and str(skip.target) in _IDEMPOTENT:
                user.replace_all_uses_with(skip)
                nodes.erase_node(user)
        nodes.erase_node(total)
    gone = frozenset[str]().union(*(branch.nodes for branch in branches))
    for node in reversed(list(nodes.nodes)):
        if not node.users and node.name in gone:
            nodes.erase_node(node)
    names = {name for branch in branches for name in branch.tensors}
    held = [item for item in graph.held() if item.name not in names]
    return replace(
        graph,
        module=graph_module(held, nodes, "Shortened"),
        params={name: tensor for name, tensor in graph.params.items() if name not in names},
        buffers={name: tensor for name, tensor in graph.buffers.items() if name not in names},
        aliases={name: first for name, first in graph.aliases.items() if name not in names},
        training=None,
        cumulative_norms=graph.cumulative_norms - names,
    )


class WithoutBranches(fx.Interpreter):
    """Runs the whole graph with some branches giving zeros: what `cut` must compute too.

    Args:
        graph: The traced network.
        branches: The branches that are off.
    """

    def __init__(self, graph: Graph, branches: Iterable[Branch]) -> None:
        super().__init__(graph.module)
        self.off = {branch.total: branch.skip for branch in branches}

    def run_node(self, n: fx.Node) -> Any:
        """One node; of a sum that is off, a copy of the shortcut."""
        if n.name not in self.off:
            return super().run_node(n)
        skip = next(source for source in n.all_input_nodes if source.name == self.off[n.name])
        value: Tensor = self.env[skip]
        return value.clone()


def _ends(
    node: fx.Node, is_before: Callable[[fx.Node, fx.Node], bool]
) -> tuple[fx.Node | None, fx.Node | None]:
    """Shortcut and branch of an addition whose one operand is computed from the other; else None twice."""
    if str(node.target) not in _ADDS or node.kwargs.get("alpha", 1) != 1 or len(node.args) < 2:
        return None, None
    a, b = node.args[:2]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return None, None
    skip, branch = (a, b) if is_before(_root(a), b) else (b, a)
    shapes = [getattr(each.meta.get("val"), "shape", None) for each in (skip, branch)]
    is_residual = is_before(_root(skip), branch) and skip.op != "get_attr"
    return (skip, branch) if is_residual and shapes[0] == shapes[1] is not None else (None, None)


def _root(node: fx.Node) -> fx.Node:
    """The node whose value this one passes on."""
    while str(node.target).startswith(_PASSING) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _needed_only_by(total: fx.Node, branch: fx.Node, earlier: list[fx.Node]) -> list[fx.Node]:
    """Of a branch's end and what stands before it, what nothing needs once the sum does not read it."""
    if branch.op == "placeholder" or branch.users.keys() - {total}:
        return []
    dead = {branch: None}
    for node in reversed(earlier):
        if node.users and node.op != "placeholder" and all(user in dead for user in node.users):
            dead[node] = None
    return list(reversed(dead))


def _tensors(graph: Graph, reads: set[str]) -> tuple[str, ...]:
    """Names that go with what a branch reads: aliases, and a module's counters that no op reads."""
    read = graph.read_names()
    owners = {name.rpartition(".")[0] for name in reads}
    left = {name.rpartition(".")[0] for name in read - reads}
    names = []
    for held in graph.held():
        first = graph.aliases.get(held.name, held.name)
        owner = held.name.rpartition(".")[0]
        counter = first not in read and owner in owners - left and first in graph.buffers
        if first in reads or counter:
            names.append(held.name)
    return tuple(names)


def _shared_path(names: Sequence[str]) -> str:
    """The module path that all these parameters share; where they share none, the module of the last."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared or paths[-1]) or names[-1]


def _named_apart(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """The same with a number behind every name that several have."""
    count = Counter(branch.name for branch in branches)
    seen: Counter[str] = Counter()
    out = []
    for branch in branches:
        name = branch.name
        if count[name] > 1:
            seen[name] += 1
            branch = replace(branch, name=f"{name}:{seen[name]}")
        out.append(branch)
    return tuple(out)


def _leave_alone(user: fx.Node, total: fx.Node) -> None:
    """Turn an op that writes into the sum into one that does not: the shortcut has other readers."""
    schema = getattr(user.target, "_schema", None)
    if schema is None or not schema.is_mutable or not user.args or user.args[0] is not total:
        return
    packet, _, overload = str(user.target).removeprefix("aten.").partition(".")
    functional = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
    if functional is None:
        raise PruneError(
            f"{user.target} writes into a residual sum", layer=user.name, remedy="Keep the branch before it"
        )
    user.target = functional
