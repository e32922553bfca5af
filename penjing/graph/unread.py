"""Parts of parameters that the forward leaves out with these inputs, and may read with others."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from penjing.graph.axes import Axis, Leaf, leaves
from penjing.graph.unify import resolve

Values = Mapping[fx.Node, Sequence[Sequence[Axis]]]

_PICKING = frozenset(
    (
        "slice", "narrow", "slice_copy", "select", "select_copy", "split", "split_with_sizes", "chunk",
        "tensor_split", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "hsplit", "vsplit",
        "split_copy", "split_with_sizes_copy", "unbind", "index", "index_select", "_unsafe_index", "pad",
        "constant_pad_nd",
    )
)  # fmt: skip


def unread(values: Values) -> dict[Leaf, fx.Node]:
    """Leaves of what is made of parameters alone that are cut off before anything is computed with an input.

    A table of positions is cut to the length of the example inputs: the rest is not dead, longer inputs read
    it. What is cut off a value that depends on an input (half of a convolution's channels) is dead.

    Args:
        values: Axes of every output of every node, in the order of the graph.

    Returns:
        The node that cuts each of them off.
    """
    given: set[fx.Node] = set()  # values that depend on an input
    cut: dict[Leaf, fx.Node] = {}
    for node in values:
        sources = [source for source in node.all_input_nodes if source in values]
        if node.op == "placeholder" or any(source in given for source in sources):
            given.add(node)
        elif _picks(node):
            left = _leaves(values[node])
            for leaf in _leaves(axes for source in sources for axes in values[source]) - left:
                cut.setdefault(leaf, sources[0] if node.target is operator.getitem else node)
    for node in values if cut else ():
        left = _leaves(values[node])
        if node in given or any(user.op == "output" for user in node.users):
            _forget(cut, left)
        if not _picks(node):
            read = (axes for source in node.all_input_nodes for axes in values.get(source, ()))
            _forget(cut, _leaves(read) - left)
    return cut


def _picks(node: fx.Node) -> bool:
    name = str(node.target)
    return node.target is operator.getitem or (name.startswith("aten.") and name.split(".")[1] in _PICKING)


def _leaves(values: Iterable[Sequence[Axis]]) -> set[Leaf]:
    return {leaf for axes in values for axis in axes for leaf in leaves(resolve(axis))}


def _forget(cut: dict[Leaf, fx.Node], read: set[Leaf]) -> None:
    for leaf in read:
        cut.pop(leaf, None)
