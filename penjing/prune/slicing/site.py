"""Where a rewriting happens: one node, the axes around it, and what is kept of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from penjing.errors import PruneError
from penjing.graph import Axis, Coupling, Graph, count, is_kept_whole, positions
from penjing.prune.ranges import Positions

Rewriter = Callable[["Site"], None]
REWRITERS: dict[str, Rewriter] = {}


def rewrites(*ops: str) -> Callable[[Rewriter], Rewriter]:
    """Register the rewriter of some ops (``"view.default"``, without the ``aten.``)."""

    def register(rewriter: Rewriter) -> Rewriter:
        REWRITERS.update(dict.fromkeys(ops, rewriter))
        return rewriter

    return register


@dataclass(frozen=True)
class Site:
    """One call of an op, to be changed in place so that it fits the kept sizes.

    Attributes:
        node: The node in the graph being sliced.
        graph: The original traced network (sources, constant values).
        coupling: Its axes.
        kept: Kept slots by leaf id.
        originals: The original graph's nodes by name.
        add_constant: Registers a constant tensor with the sliced module and gives its name.
        set_buffer: Gives a buffer or constant new values.
    """

    node: fx.Node
    graph: Graph
    coupling: Coupling
    kept: Mapping[int, Positions]
    originals: Mapping[str, fx.Node]
    add_constant: Callable[[Tensor], str]
    set_buffer: Callable[[str, Tensor], None]

    # -- axes -----------------------------------------------------------------------------------------------

    def axes(self, value: Any, output: int = 0) -> tuple[Axis, ...]:
        """Axes of a tensor argument, or of one output of the node itself."""
        if not isinstance(value, fx.Node):
            return ()
        found = self.coupling.values.get(value.name)
        return found[output] if found else ()

    @property
    def out(self) -> tuple[Axis, ...]:
        """Axes of the (first) output."""
        return self.axes(self.node)

    @property
    def outs(self) -> tuple[tuple[Axis, ...], ...]:
        """Axes of every output."""
        return self.coupling.values[self.node.name]

    def whole(self, axis: Axis) -> bool:
        """Whether the axis keeps everything."""
        return is_kept_whole(axis, self.kept)

    def size(self, axis: Axis) -> int:
        """Number of positions kept."""
        return count(axis, self.kept)

    def positions(self, axis: Axis) -> Positions:
        """Positions kept."""
        return positions(axis, self.kept)

    def dim(self, value: Any, dim: int) -> int:
        """A dimension counted from the front."""
        return dim % max(len(self.axes(value)), 1)

    # -- arguments ------------------------------------------------------------------------------------------

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """A positional or keyword argument."""
        if len(self.node.args) > index:
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def put(self, index: int, name: str, value: Any) -> None:
        """Set a positional or keyword argument."""
        if len(self.node.args) > index:
            self.node.update_arg(index, value)
        else:
            self.node.update_kwarg(name, value)

    def become(self, target: Any, *args: Any) -> None:
        """Turn the node into another call."""
        self.node.target = target
        self.node.args = args
        self.node.kwargs = {}

    def sizes(self, values: Sequence[Any], axes: Sequence[Axis]) -> list[Any]:
        """Written sizes, one for each axis, made to fit: -1 and untouched axes stay as they are."""
        return [self.sized(value, axis) for value, axis in zip(values, axes, strict=True)]

    def sized(self, value: Any, axis: Axis) -> Any:
        """One written size made to fit. A symbolic size (batch times something) is scaled in the graph."""
        if self.whole(axis) or (isinstance(value, int) and value == -1):
            return value
        if isinstance(value, int):
            return self.size(axis)
        return self.scaled(value, axis.size, self.size(axis))

    def scaled(self, value: fx.Node, old: int, new: int) -> fx.Node:
        """A symbolic number times ``new / old``."""
        if old == new:
            return value
        shared = int(np.gcd(old, new))
        owner = self.node.graph
        with owner.inserting_before(self.node):
            scaled = owner.call_function(operator.mul, (value, new // shared))
            return owner.call_function(operator.floordiv, (scaled, old // shared))

    def constant(self, value: Any) -> Tensor:
        """The original value of an argument that must be known now.

        Raises:
            PruneError: if it is computed from the model's input.
        """
        if not isinstance(value, fx.Node):
            raise self.error("an index is not a tensor")
        node = self.originals.get(value.name, value)
        if node.op == "get_attr":
            name = str(node.target)
            held = self.graph.buffers.get(name, self.graph.params.get(name))
            if held is not None:
                return held
        if node.op == "call_function" and callable(node.target):
            args = fx.map_arg(node.args, self.constant)
            result = node.target(*args, **fx.map_arg(node.kwargs, self.constant))
            if isinstance(result, Tensor):
                return result
        raise self.error("an index is not a constant")

    def tensor(self, value: Tensor) -> fx.Node:
        """A node giving a new constant."""
        owner = self.node.graph
        name = self.add_constant(value)
        with owner.inserting_before(self.node):
            return owner.get_attr(name)

    def index_tensor(self, old: Any, value: Tensor) -> Any:
        """A node giving a rewritten index: the buffer it was read from, where nothing else reads that."""
        name = str(old.target) if isinstance(old, fx.Node) and old.op == "get_attr" else ""
        held = self.graph.buffers.get(name)
        reads = [n for n in self.node.graph.nodes if n.op == "get_attr" and n.target == name]
        if held is None or held.dtype == torch.bool or len(reads) != 1 or len(reads[0].users) != 1:
            return self.tensor(value)
        self.set_buffer(name, value.to(held.dtype))
        return old

    def moved(self, axis_in: Axis, source: Positions) -> Positions:
        """Old source positions in the input's dim as positions in what is kept of it.

        Raises:
            PruneError: if one of them is not kept (the axes disagree with the op).
        """
        kept = self.positions(axis_in)
        new = np.searchsorted(kept, source)
        if (new >= len(kept)).any() or (kept[np.minimum(new, len(kept) - 1)] != source).any():
            raise self.error("the op reads positions that were removed")
        return np.asarray(new, dtype=np.int64)

    def gather(self, value: Any, dim: int, index: Positions) -> None:
        """Turn the node into a selection of positions along one dim."""
        self.become(torch.ops.aten.index_select.default, value, dim, self.tensor(torch.from_numpy(index)))

    def error(self, cause: str) -> PruneError:
        """An error that names the op and its source line."""
        source = self.graph.source(self.node)
        return PruneError(
            f"cannot slice {self.node.target}: {cause}",
            layer=source or self.node.name,
            remedy="Report this op; meanwhile pass its layer's parameters in ignore=",
        )
