"""What the runtime has to do for some choice of kept slots: operators with their shapes, and data moved."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from penjing.graph import Coupling, Graph, leaves
from penjing.graph.batch import at_batch
from penjing.measure.latency_ops import OpShape
from penjing.prune.cost import KINDS, Call, Kept

Shape = tuple[int, ...]
_FREE_OPS = frozenset(
    {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "detach", "alias", "dropout", "clone"}
    | {"_unsafe_view", "expand", "contiguous", "batch_norm", "dropout_", "feature_dropout", "t", "transpose"}
)
"""Ops that cost nothing in an exported file: views, what is folded into weights, what only trains."""


@dataclass(frozen=True)
class Workload:
    """One forward pass.

    Attributes:
        ops: How often each operator is called with each shape.
        moved: Elements written by all other ops.
    """

    ops: Mapping[OpShape, int]
    moved: int

    @property
    def digest(self) -> str:
        """Names the workload: equal for equal work."""
        parts = sorted((shape.key, number) for shape, number in self.ops.items())
        return hashlib.sha256(json.dumps([parts, self.moved]).encode()).hexdigest()[:24]


class Workloads:
    """Workloads of one network, node by node; a node whose axes keep the same slots is not looked at again.

    Args:
        graph: The traced network.
        coupling: Its axes.
        batch: Samples in a call.
    """

    def __init__(self, graph: Graph, coupling: Coupling, batch: int = 1) -> None:
        self.graph, self.coupling, self.batch = graph, coupling, batch
        self._nodes = [(node, _leaves(node, coupling)) for node in _computing(graph, coupling)]
        self._known: dict[tuple[Any, ...], tuple[tuple[OpShape, ...], int]] = {}

    def __call__(self, kept: Kept) -> Workload:
        """What one call does when these slots are kept (by leaf id)."""
        ops: Counter[OpShape] = Counter()
        moved = 0
        names = {leaf: slots.tobytes() for leaf, slots in kept.items()}
        for node, leaf_ids in self._nodes:
            key = (node.name, *(names.get(leaf) for leaf in leaf_ids))
            if key not in self._known:
                self._known[key] = _of_node(Call(node, self.coupling, kept), self.batch)
            shapes, written = self._known[key]
            ops.update(shapes)
            moved += written
        return Workload(dict(ops), moved)


def _computing(graph: Graph, coupling: Coupling) -> list[fx.Node]:
    return [n for n in graph.module.graph.nodes if n.op == "call_function" and coupling.values.get(n.name)]


def _leaves(node: fx.Node, coupling: Coupling) -> tuple[int, ...]:
    """Ids of the leaves that this node's sizes depend on."""
    values = (coupling.values.get(n.name, ()) for n in (node, *node.all_input_nodes))
    found = {leaf.id for value in values for axes in value for axis in axes for leaf in leaves(axis)}
    return tuple(sorted(found))


def _of_node(call: Call, batch: int) -> tuple[tuple[OpShape, ...], int]:
    """The operators of one node, and the elements that it writes besides."""
    target = str(call.node.target)
    shaper = SHAPERS.get(KINDS.get(target, ""))
    if shaper is not None:
        return tuple(shaper(call, batch)), _extra(call, batch)
    free = target.split(".")[1] in _FREE_OPS if "." in target else True
    return (), 0 if free else prod(_sizes(call, call.node, batch))


def _sizes(call: Call, value: Any, batch: int) -> Shape:
    """Kept sizes of a value, with the batch put in where it is free."""
    return tuple(at_batch(size, call.coupling.batch, batch) for size in call.sizes(value))


def _conv(call: Call, batch: int) -> Iterator[OpShape]:
    x, w = (_sizes(call, arg, batch) for arg in call.node.args[:2])
    kernel = w[2:]
    stride, padding, dilation = (
        _spread(_arg(call.node, at, default), len(kernel)) for at, default in ((3, 1), (4, 0), (5, 1))
    )
    groups = x[-len(kernel) - 1] // w[1]
    options = _conv_options(groups, kernel, stride, padding, dilation)
    yield OpShape("conv", _batched(x, kernel), w, options)


def _conv_transpose(call: Call, batch: int) -> Iterator[OpShape]:
    x, w = (_sizes(call, arg, batch) for arg in call.node.args[:2])
    kernel = w[2:]
    args = [_spread(_arg(call.node, at, default), len(kernel)) for at, default in ((3, 1), (4, 0), (7, 1))]
    groups = int(_arg(call.node, 6, 1))
    yield OpShape("conv_transpose", _batched(x, kernel), w, _conv_options(groups, kernel, *args))


def _conv_options(
    groups: int, kernel: Shape, stride: Shape, padding: Shape | str, dilation: Shape
) -> tuple[tuple[str, Shape], ...]:
    if isinstance(padding, str):
        total = tuple(d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True))
        pads = (*(t // 2 for t in total), *(t - t // 2 for t in total))
    else:
        pads = (*padding, *padding)
    return (
        ("dilations", dilation),
        ("group", (groups,)),
        ("kernel_shape", kernel),
        ("pads", pads),
        ("strides", stride),
    )


def _batched(x: Shape, kernel: Shape) -> Shape:
    return x if len(x) == len(kernel) + 2 else (1, *x)


def _linear(call: Call, batch: int) -> Iterator[OpShape]:
    x, w = (_sizes(call, arg, batch) for arg in call.node.args[:2])
    yield OpShape("matmul", x, (w[1], w[0]))


def _matmul(call: Call, batch: int) -> Iterator[OpShape]:
    x, w = (_sizes(call, arg, batch) for arg in call.node.args[:2])
    yield OpShape("bmm", x, w)


def _addmm(call: Call, batch: int) -> Iterator[OpShape]:
    x, w = (_sizes(call, arg, batch) for arg in call.node.args[1:3])
    yield OpShape("bmm", x, w)


def _attention(call: Call, batch: int) -> Iterator[OpShape]:
    q, k, v = (_sizes(call, arg, batch) for arg in call.node.args[:3])
    yield OpShape("bmm", q, (*k[:-2], k[-1], k[-2]))
    yield OpShape("bmm", (*q[:-1], k[-2]), v)


Shaper = Callable[[Call, int], Iterator[OpShape]]
SHAPERS: Mapping[str, Shaper] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "addmm": _addmm,
    "attention": _attention,
}
"""Kinds of op (`penjing.prune.cost.KINDS`) whose kernels are looked up. Every other op counts by what it
writes."""


def _extra(call: Call, batch: int) -> int:
    """The softmax inside attention writes the matrix of weights."""
    if "attention" not in str(call.node.target):
        return 0
    q, k = (_sizes(call, arg, batch) for arg in call.node.args[:2])
    return prod(q[:-1]) * k[-2]


def _arg(node: fx.Node, at: int, default: Any) -> Any:
    return node.args[at] if len(node.args) > at else default


def _spread(value: Any, dims: int) -> Any:
    if isinstance(value, str):
        return value
    values = tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
    return values * dims if len(values) == 1 else values
