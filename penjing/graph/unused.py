"""Parameters that the traced forward does not read, though one that cannot be traced would: in training.

A speech encoder puts a learned vector in the place of masked frames while it trains; where training mode
cannot be traced (chance decides what is masked), nothing reads that vector. Where it stands is told by the
widths of what its own module's forward hands from one part to the next: it follows the only axis of its size
there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from torch import fx

from penjing.graph.axes import Axis, is_fixed
from penjing.graph.module_paths import module_stack
from penjing.graph.unify import resolve

Axes = tuple[Axis, ...]


def companions(
    unread: Mapping[str, Sequence[Axis]], values: Mapping[fx.Node, Sequence[Axes]]
) -> Iterator[tuple[Axis, Axis]]:
    """Each dim of an unread parameter, and the axis that it follows, where there is exactly one.

    Args:
        unread: Axes of the parameters that no node reads, by name.
        values: Axes of every output of every node.
    """
    seen = _handed_on({name.rpartition(".")[0] for name in unread}, values)
    for name, axes in unread.items():
        for axis in axes:
            near = {id(other): other for other in seen[name.rpartition(".")[0]] if other.size == axis.size}
            if axis.size > 1 and not is_fixed(axis) and len(near) == 1:
                (other,) = near.values()
                if not is_fixed(other):
                    yield axis, other


def _handed_on(paths: Set[str], values: Mapping[fx.Node, Sequence[Axes]]) -> Mapping[str, Sequence[Axis]]:
    """Axes of the values that these modules' own forwards see: what is made in one part of a module (or in
    its forward itself) and read in another.
    """
    found: dict[str, list[Axis]] = defaultdict(list)
    for node in values:
        for source in node.all_input_nodes:
            path = _shared(module_stack(source), module_stack(node))
            if path in paths and source.op == "call_function":
                found[path] += (resolve(axis) for axes in values.get(source, ()) for axis in axes)
    return found


def _shared(one: Sequence[str], other: Sequence[str]) -> str:
    """The innermost module that both are in; "" is the network."""
    path = ""
    for here, there in zip(one, other, strict=False):
        if here != there:
            break
        path = here
    return path
