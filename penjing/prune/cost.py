"""Exact parameters and multiply-accumulates of any choice of kept slots, counted from the axes alone (no
tracing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from penjing.graph import Axis, Coupling, Graph, count, couple
from penjing.graph.axes import leaves
from penjing.graph.batch import per_sample
from penjing.prune.ranges import Positions

Kept = Mapping[int, Positions]
Axes = tuple[Axis, ...]
Counter = Callable[["Call"], int]


@dataclass(frozen=True)
class Call:
    """One op with the sizes that its axes have under some choice."""

    node: fx.Node
    coupling: Coupling
    kept: Kept

    def sizes(self, value: Any, output: int = 0) -> tuple[int, ...]:
        """Kept sizes of a tensor argument, or of an output of the node itself."""
        axes: Sequence[Axes] = self.coupling.values.get(value.name, ()) if isinstance(value, fx.Node) else ()
        return tuple(count(axis, self.kept) for axis in axes[output]) if axes else ()

    @property
    def out(self) -> tuple[int, ...]:
        """Sizes of the output."""
        return self.sizes(self.node)


def _conv(call: Call) -> int:
    return prod(call.out) * prod(call.sizes(call.node.args[1])[1:])


def _conv_transpose(call: Call) -> int:
    return prod(call.sizes(call.node.args[0])) * prod(call.sizes(call.node.args[1])[1:])


def _linear(call: Call) -> int:
    return prod(call.out) * call.sizes(call.node.args[1])[-1]


def _matmul(call: Call) -> int:
    return prod(call.out) * call.sizes(call.node.args[0])[-1]


def _addmm(call: Call) -> int:
    return prod(call.out) * call.sizes(call.node.args[1])[-1]


def _attention(call: Call) -> int:
    q, k, v = (call.sizes(a) for a in call.node.args[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _bilinear(call: Call) -> int:
    return prod(call.out) * prod(call.sizes(call.node.args[2])[1:])


def _einsum(call: Call) -> int:
    """Operand by operand from the left: each step multiplies all combinations of the labels that it sums or
    that are needed later; a step that sums nothing is elementwise.
    """
    equation, operands = str(call.node.args[0]).replace(" ", ""), call.node.args[1]
    left, arrow, right = equation.partition("->")
    size: dict[str, int] = {}
    terms: list[list[str]] = []
    for term, operand in zip(left.split(","), operands, strict=True):  # type: ignore[arg-type]
        sizes = call.sizes(operand)
        head, dots, tail = term.partition("...")
        extra = [f"…{i}" for i in range(len(sizes) - len(head) - len(tail), 0, -1)] if dots else []
        terms.append([*head, *extra, *tail])
        for label, length in zip(terms[-1], sizes, strict=True):
            size[label] = max(size.get(label, 1), length)
    named = right.replace("...", "") if arrow else (label for label in size if left.count(label) == 1)
    needed = {*named, *(label for label in size if label.startswith("…"))}
    macs, before = 0, set(terms[0])
    for number, labels in enumerate(map(set, terms[1:]), start=2):
        later = needed.union(*terms[number:])
        if before & labels - later:
            macs += prod(size[label] for label in (before & labels) | ((before | labels) & later))
        before = (before | labels) & later
    return macs


def _recurrent(call: Call) -> int:
    """Every step multiplies the input and the state by the gates' weights."""
    x = call.sizes(call.node.args[0])
    weights = [call.sizes(w) for w in call.node.args[2]]  # type: ignore[union-attr]
    return x[0] * x[1] * sum(prod(w) for w in weights if len(w) == 2)


def _cell(call: Call) -> int:
    """One step of a recurrent layer."""
    x, _, w_ih, w_hh = call.node.args[:4]
    return prod(call.sizes(x)[:-1]) * (prod(call.sizes(w_ih)) + prod(call.sizes(w_hh)))


_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")

KINDS: Mapping[str, str] = {
    **dict.fromkeys((f"aten.conv{d}d.{o}" for d in (1, 2, 3) for o in ("default", "padding")), "conv"),
    "aten.conv_transpose1d.default": "conv_transpose",
    "aten.conv_transpose2d.input": "conv_transpose",
    "aten.conv_transpose3d.input": "conv_transpose",
    "aten.linear.default": "linear",
    "aten.matmul.default": "matmul",
    "aten.mm.default": "matmul",
    "aten.bmm.default": "matmul",
    "aten.addmm.default": "addmm",
    "aten.baddbmm.default": "addmm",
    "aten.scaled_dot_product_attention.default": "attention",
    "aten.einsum.default": "einsum",
    "aten.bilinear.default": "bilinear",
    "aten._grouped_mm.default": "grouped",
    "transformers.grouped_mm_fallback.default": "grouped",
    **dict.fromkeys((f"aten.{name}.input" for name in _RECURRENT), "recurrent"),
    **dict.fromkeys((f"aten.{name}_cell.default" for name in _RECURRENT), "cell"),
}
"""Ops that multiply and accumulate, by what they are; every other op counts nothing."""

COUNTERS: Mapping[str, Counter] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "addmm": _addmm,
    "attention": _attention,
    "einsum": _einsum,
    "bilinear": _bilinear,
    "grouped": _matmul,  # every row meets the weights of one expert
    "recurrent": _recurrent,
    "cell": _cell,
}
"""Multiply-accumulates of a call, by kind."""


@dataclass(frozen=True)
class Cost:
    """Counts the cost of kept slots of one coupling.

    Attributes:
        graph: The traced network.
        coupling: Its axes.
    """

    graph: Graph
    coupling: Coupling

    def params(self, kept: Kept) -> int:
        """Parameters; shared ones count once, buffers do not count."""
        total = 0
        for name, tensor in self.graph.params.items():
            axes = self.coupling.tensors.get(name)
            total += tensor.numel() if axes is None else prod(count(axis, kept) for axis in axes)
        return total

    def macs(self, kept: Kept) -> int:
        """Multiply-accumulates of one sample: at batch 1 where the batch is free, else of a share of it."""
        total = 0
        for node in self.graph.module.graph.nodes:
            kind = KINDS.get(str(node.target)) if node.op == "call_function" else None
            if kind is not None and node.name in self.coupling.values:
                total += per_sample(COUNTERS[kind](Call(node, self.coupling, kept)), self.coupling.batch)
        return total // self._fixed_batch()

    def _fixed_batch(self) -> int:
        """How many samples one pass over the graph takes; 1 where that is free, or where no dimension is a
        batch: outputs have it in front, and no parameter has it.
        """
        nodes, values = self.graph.module.graph, self.coupling.values
        inputs = (axes for node in nodes.find_nodes(op="placeholder") for axes in values.get(node.name, ()))
        first = next((axes[0] for axes in inputs if axes), None)
        if self.graph.batch_dim or first is None:
            return 1
        outputs = (axes for node in nodes.output_node().all_input_nodes for axes in values.get(node.name, ()))
        given = any(axes and axes[0].size == first.size for axes in outputs)
        own = (axis for name in self.graph.params for axis in self.coupling.tensors.get(name, ()))
        met = {leaf.reason for axis in own for leaf in leaves(axis)}
        return first.size if given and met.isdisjoint(leaf.reason for leaf in leaves(first)) else 1

    def bytes(self, kept: Kept) -> int:
        """Bytes of parameters and persistent buffers; shared ones count once."""
        total = 0
        held = {h.name: h.tensor for h in self.graph.held() if h.persistent}
        for name, tensor in held.items():
            if name not in self.graph.aliases:
                axes = self.coupling.tensors.get(name)
                size = tensor.numel() if axes is None else prod(count(axis, kept) for axis in axes)
                total += size * tensor.element_size()
        return total

    def __call__(self, kept: Kept) -> dict[str, int]:
        """Parameters and multiply-accumulates, by name."""
        return {"params": self.params(kept), "macs": self.macs(kept)}


def count_all(graph: Graph) -> dict[str, int]:
    """Parameters and multiply-accumulates of a whole traced network, by name."""
    return Cost(graph, couple(graph))({})
