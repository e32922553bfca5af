"""Run a traced network node by node over all calibration batches at once.

Values are kept only as long as something still reads them, so a network can be changed layer by layer
while its data waits in front of the next layer, and every layer is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from penjing.batches import Inputs, count_samples, limited
from penjing.errors import DataError
from penjing.graph import Graph
from penjing.graph.inputs import flat_inputs
from penjing.prune.writes import find_writes, is_in_place

Hook = Callable[[fx.Node], None]
_FEWEST = 8


@dataclass(frozen=True)
class Footprint:
    """Memory of a network's values in bytes.

    Attributes:
        peak: Most that a walk kept at one time.
        total: Of all values that it computed.
    """

    peak: int
    total: int


def given_to(graph: Graph, inputs: Inputs) -> list[Tensor]:
    """The tensors of a batch in the order in which the graph takes them."""
    return [leaf for leaf in flat_inputs(graph.module, inputs) if isinstance(leaf, Tensor)]


def footprint(graph: Graph, inputs: Sequence[Any]) -> Footprint:
    """What one sample takes; measured by walking once, with the flat inputs of a small batch."""
    # copies: a slice of a large batch holds all of its memory
    walk = Walk(graph, [[value.clone() if isinstance(value, Tensor) else value for value in inputs]])
    walk.run()
    samples = max(count_samples(inputs), 1)
    return Footprint(-(-walk.footprint.peak // samples), -(-walk.footprint.total // samples))


def samples_within(gibibytes: float, *footprints: Footprint) -> int:
    """How many samples can wait at once in walks of these footprints; at least a few."""
    return max(int(gibibytes * 2**30) // max(sum(one.peak for one in footprints), 1), _FEWEST)


def within_memory(
    batches: Sequence[Inputs], gibibytes: float, *footprints: Footprint, unit: int = 1
) -> tuple[list[Inputs], str]:
    """As many samples as can wait at once, in multiples of the unit, and a note where these are not all."""
    given = sum(count_samples(batch) for batch in batches)
    room = samples_within(gibibytes, *footprints)
    if room >= given:
        return list(batches), ""
    room = max(room // unit, 1) * unit
    note = f"{room} of {given} samples were used: values of more would not fit into "
    return limited(batches, room), f"{note}max_memory={gibibytes:g} GiB"


class Walk:
    """Values of a graph's nodes, each a list with one entry for each batch.

    Args:
        graph: The traced network; its parameters are read when a node is computed.
        batches: The flat inputs of each batch, in the order of the graph's placeholders.
        pinned: Nodes whose values stay until `release`.

    Attributes:
        inputs: The network's inputs, batch by batch.
        footprint: Memory of all batches' values so far.
    """

    def __init__(
        self, graph: Graph, batches: Sequence[Sequence[Any]], pinned: Sequence[fx.Node] = ()
    ) -> None:
        self.graph = graph
        self.footprint = Footprint(0, 0)
        self._count = len(batches)
        self._values: dict[fx.Node, list[Any]] = {}
        self._done: set[fx.Node] = set()
        nodes = graph.module.graph.nodes
        self._readers = {node: len(node.users) for node in nodes}
        for node in pinned:
            self._readers[node] += 1
        self._writes = find_writes(graph.module.graph)
        self._constant = _constants(graph, set(self._writes.roots.values()))
        self._done |= self._constant
        placeholders = [node for node in nodes if node.op == "placeholder"]
        if differing := [len(batch) for batch in batches if len(batch) != len(placeholders)]:
            raise DataError(
                f"a batch gives {differing[0]} inputs, the network was traced with {len(placeholders)}",
                remedy="Give batches (inputs, target) with inputs as in example_inputs; where a batch is a "
                "dict, its label, labels, target or targets is taken for the target",
            )
        self.inputs = [dict(zip(placeholders, batch, strict=True)) for batch in batches]
        for node in placeholders:
            values = [batch[node] for batch in self.inputs]
            is_written = node in self._writes.roots.values()  # the data stay as they are
            self._values[node] = [value.clone() for value in values] if is_written else values
            self._done.add(node)

    def run(self, before: Hook | None = None) -> None:
        """Compute the outputs; ``before`` as in `ensure`."""
        output = next(node for node in self.graph.module.graph.nodes if node.op == "output")
        for node in [*self._writes.first.get(output, ()), *output.all_input_nodes]:
            self.ensure(node, before)

    def ensure(self, wanted: fx.Node, before: Hook | None = None) -> list[Any]:
        """Compute a node and all it depends on, where not done yet; gives its values.

        Args:
            wanted: The node.
            before: Called with each node when its inputs are ready and it is about to be computed.
        """
        stack = [wanted]
        while stack:
            node = stack[-1]
            if node in self._done:
                stack.pop()
                continue
            needed = [*self._writes.first.get(node, ()), *node.all_input_nodes]
            missing = [source for source in needed if source not in self._done]
            if missing:
                stack.extend(reversed(missing))
                continue
            if before is not None:
                before(node)
            if node not in self._done:  # the hook may have computed it
                self._compute(node)
            stack.pop()
        return self.values(wanted)

    def values(self, node: fx.Node) -> list[Any]:
        """The values of a node that is done and still read by something.

        What is computed from parameters alone is computed when it is asked for, so it is never out of date.
        """
        if node in self._constant:
            return [self._of_parameters(node, {})] * self._count
        return self._values[node]

    def replace(self, node: fx.Node, values: list[Any]) -> None:
        """Put new values in the place of a node's, for all that still reads it."""
        assert node in self._values, "values that nothing reads cannot be replaced"
        self._values[node] = values

    def release(self, node: fx.Node) -> None:
        """Count one reader of the node as done; the last one frees its values."""
        self._readers[node] -= 1
        if self._readers[node] == 0:
            self._values.pop(node, None)

    @torch.no_grad()
    def evaluate(self, node: fx.Node, index: int) -> Any:
        """The node's value for one batch, from its inputs' values, without keeping it."""
        return called(node, lambda source: self.values(source)[index])

    @torch.no_grad()
    def _compute(self, node: fx.Node) -> None:
        given = {source: self.values(source) for source in node.all_input_nodes}
        writes = node in self._writes.roots
        self._values[node] = [
            called(node, {source: values[index] for source, values in given.items()}.__getitem__, writes)
            for index in range(self._count)
        ]
        self._done.add(node)
        made = _num_bytes(self._values[node])
        alive = _num_bytes(self._values.values())
        self.footprint = Footprint(max(self.footprint.peak, alive), self.footprint.total + made)
        for source in node.all_input_nodes:
            self.release(source)

    @torch.no_grad()
    def _of_parameters(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            value = attribute(self.graph, node)
            return value.detach() if isinstance(value, Tensor) else value
        if node not in known:
            known[node] = called(node, lambda source: self._of_parameters(source, known))
        return known[node]


def _num_bytes(values: Iterable[Any]) -> int:
    """Memory of all tensors in there; views of one another count once."""
    found = (leaf for leaf in pytree.tree_leaves(list(values)) if isinstance(leaf, Tensor))
    storages = {(store := leaf.untyped_storage()).data_ptr(): store.nbytes() for leaf in found}
    return sum(storages.values())


def _constants(graph: Graph, written: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Parameters and buffers, and what is computed from them alone; not values that are written into."""
    found: set[fx.Node] = set()
    for node in graph.module.graph.nodes:
        sources = node.all_input_nodes
        if node in written:
            continue
        if node.op == "get_attr" or (node.op == "call_function" and sources and found.issuperset(sources)):
            found.add(node)
    return found


def attribute(graph: Graph, node: fx.Node) -> Any:
    """The parameter, buffer or constant that a get_attr node reads."""
    value: Any = graph.module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def called(node: fx.Node, value: Callable[[fx.Node], Any], writes: bool = False) -> Any:
    """The value of a call, from the values of its inputs, which it does not change unless it ``writes``."""
    given: Any = fx.node.map_arg((node.args, node.kwargs), value)
    args, kwargs = given
    if is_in_place(node) and not writes:
        args = (args[0].clone(), *args[1:])
    assert callable(node.target), "placeholders, attributes and the output are not evaluated"
    return node.target(*args, **kwargs)
