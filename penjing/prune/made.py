"""The axes of what the own forward of each module makes, pads, splits and is given, and how it makes them:
what says which of its numbers are widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import numpy as np
from torch import fx

from penjing.graph import Axis, Coupling, Graph
from penjing.graph.axes import Index, Product
from penjing.graph.module_paths import module_stack
from penjing.graph.shuffle import SPLITS


class How(Enum):
    """How the sizes of a value come about, by parts of the name of the op that makes it."""

    SHAPED = ("view", "reshape", "unflatten", "expand", "repeat", "tile", "zeros", "ones", "full")
    """The forward writes its shape."""
    SPLIT = ("split",)
    """The forward writes into what sizes it is cut."""
    WORKED = ("chunk", "norm", "conv", "pad", "slice", "shuffle")
    """The forward may give a size, its modules or their weights may have one."""
    OTHER = ("",)
    """Its size is what that of its inputs was; any name has this part."""

    @classmethod
    def of(cls, op: str) -> How:
        """How an op, by its full name, comes to its sizes."""
        return next(how for how in cls if any(part in op for part in how.value))


class Made(NamedTuple):
    """A dim of a value, the module in whose forward the value is made, and how."""

    path: str
    axis: Axis
    how: How


def made_axes(graph: Graph, coupling: Coupling) -> Iterator[Made]:
    """Each dim of each value that is computed."""
    for node in graph.module.graph.nodes:
        if node.op != "call_function" or node.name not in coupling.values:
            continue
        path, how = owner(node), How.of(str(node.target))
        for axes in coupling.values[node.name]:
            for axis in axes:
                yield Made(path, axis, how)


def given_axes(graph: Graph, coupling: Coupling) -> Iterator[tuple[str, Axis]]:
    """Each dim of each value that is made outside a module and read inside it, or in a module of it and read
    in its own forward.
    """
    for node in graph.module.graph.nodes:
        inside, own = set(module_stack(node)), owner(node)
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                at_own = {own} if owner(source) != own else set()
                for path in at_own.union(inside.difference(module_stack(source))):
                    for axes in coupling.values.get(source.name, ()):
                        for axis in axes:
                            yield path, axis


def split_axes(graph: Graph, coupling: Coupling) -> Iterator[tuple[str, Axis]]:
    """Each dim that a module's own forward splits, which it may write as ``width // heads``: a number that is
    in no shape.
    """
    for node in graph.module.graph.nodes:
        if str(node.target) not in SPLITS or node.name not in coupling.values:
            continue
        made = {axis.size for axes in coupling.values[node.name] for axis in axes}
        for axes in coupling.values.get(node.args[0].name, ()):
            for axis in axes:
                if isinstance(axis, Product) and axis.size not in made:
                    yield owner(node), axis


def padded(graph: Graph, coupling: Coupling) -> Iterator[tuple[str, Axis, Index]]:
    """The slots that each module's own forward pads with: module, axis of the result, positions in it."""
    for node in graph.module.graph.nodes:
        if not str(node.target).startswith(("aten.pad.", "aten.constant_pad_nd.")):
            continue
        amounts = node.args[1]
        for axes in coupling.values.get(node.name, ()):
            for axis, before, after in zip(reversed(axes), amounts[::2], amounts[1::2], strict=False):
                if isinstance(before, int) and before > 1:
                    yield owner(node), axis, np.arange(before)
                if isinstance(after, int) and after > 1:
                    yield owner(node), axis, np.arange(axis.size - after, axis.size)


def owner(node: fx.Node) -> str:
    """Path of the module in whose forward the node was made."""
    return ("", *module_stack(node))[-1]
