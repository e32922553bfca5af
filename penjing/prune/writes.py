"""Ops that write into memory which others read: ``out[:, i] = layer(x)``, ``y[:, :8] *= scale``.

Most ops in place (``relu_``) are read through their own result alone, and might as well make a new value.
Where a value is read again by another name it matters what was written before, and no argument says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

_MAY_ALIAS = {"reshape", "flatten", "unflatten", "contiguous", "to", "dropout", "chunk", "movedim", "squeeze"}
"""Ops that give their argument or a view of it, which their schemas do not say."""


@dataclass
class Writes:
    """The writes of a graph that others see.

    Attributes:
        roots: Each such op with the value whose memory it writes into.
        first: What has to be computed before a node, besides its arguments.
    """

    roots: dict[fx.Node, fx.Node] = field(default_factory=dict)
    first: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)


def is_in_place(node: fx.Node) -> bool:
    """Whether the op writes into its first argument."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable and node.args)


def find_writes(graph: fx.Graph) -> Writes:
    """What ops in place change for those that read the same memory later by another name.

    What is written into a parameter or buffer is left out.
    """
    place = {node: at for at, node in enumerate(graph.nodes)}
    families: dict[fx.Node, list[fx.Node]] = {}
    root: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        root[node] = root[node.args[0]] if _aliases(node) else node
        families.setdefault(root[node], []).append(node)
    found = Writes()
    for node in filter(is_in_place, graph.nodes):
        if root[node].op == "get_attr":
            continue
        older = [member for member in families[root[node]] if place[member] < place[node]]
        readers = {reader for member in older for reader in member.users if reader is not node}
        later = [reader for reader in readers if place[reader] > place[node]]
        if later:
            found.roots[node] = root[node]
            found.first.setdefault(node, []).extend(
                sorted((reader for reader in readers if place[reader] < place[node]), key=place.__getitem__)
            )
            for reader in later:
                found.first.setdefault(reader, []).append(node)
    return found


def _aliases(node: fx.Node) -> bool:
    """Whether a value may share the memory of the op's first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if getattr(node.target, "__name__", "") == "getitem":
        return True
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    shared = any(value.alias_info is not None for value in schema.returns)
    return shared or str(schema.name).removeprefix("aten::") in _MAY_ALIAS
