"""Where a network can be refitted: layers that read pruned channels, and what stands behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from penjing.graph import Graph
from penjing.prune.moments import Patches, pair
from penjing.prune.rectified import Range


@dataclass(frozen=True)
class Norm:
    """A batch norm in eval mode: names of its tensors.

    Attributes:
        node: Its node.
        weight, bias, mean, var: Names of γ, β and the running statistics.
        eps: Added to the variance.
    """

    node: fx.Node
    weight: str
    bias: str
    mean: str
    var: str
    eps: float


@dataclass(frozen=True)
class Place:
    """One layer that can be refitted.

    Attributes:
        node: Its node.
        weight: Name of the weight ``[out, in, …]``.
        bias: Name of the bias, or None.
        patches: How rows of its input are cut.
        norm: The batch norm that alone reads it, or None.
        total: The addition that alone reads it (through the norm and dropout), or None: a residual sum.
        other: The other operand of that addition.
        bounds: Range of the ReLU that alone reads what the layer ends in (the sum, the norm, or itself).
    """

    node: fx.Node
    weight: str
    bias: str | None
    patches: Patches
    norm: Norm | None = None
    total: fx.Node | None = None
    other: fx.Node | None = None
    bounds: Range | None = None

    @property
    def shiftable(self) -> bool:
        """Whether its output can be shifted: by its bias, or by the norm behind it."""
        return self.bias is not None or self.norm is not None


_CONVS = {"aten.conv1d.default", "aten.conv2d.default"}
_ADDS = {"aten.add.Tensor", "aten.add_.Tensor"}
_PASSED = {
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.alias.default",
}


def find_places(graph: Graph) -> dict[str, Place]:
    """Layers by weight name: convolutions (1-d, 2-d, grouped) and linear layers that share no weight."""
    places: dict[str, Place] = {}
    for node in graph.module.graph.nodes:
        name, args = str(node.target), _filled(node)
        if name not in _CONVS and name != "aten.linear.default":
            continue
        weight, bias = args[1], args[2]
        if not _own(weight) or (bias is not None and not _own(bias)):
            continue
        patches = Patches() if name == "aten.linear.default" else _patches(args, graph, str(weight.target))
        norm = _norm_after(node)
        total, other = _sum_after(norm.node if norm else node)
        bounds = _range_after(total or (norm.node if norm else node))
        bias_name = None if bias is None else str(bias.target)
        places[str(weight.target)] = Place(
            node, str(weight.target), bias_name, patches, norm, total, other, bounds
        )
    return places


def find_norms(graph: Graph) -> dict[fx.Node, Norm]:
    """Batch norms with scale, offset and running statistics, by node."""
    found = (_as_norm(node) for node in graph.module.graph.nodes)
    return {norm.node: norm for norm in found if norm is not None}


def _filled(node: fx.Node) -> list[Any]:
    """Arguments by position, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(node.args)
    defaults = [argument.default_value for argument in schema.arguments]
    names = [argument.name for argument in schema.arguments]
    given = list(node.args) + defaults[len(node.args) :]
    return [node.kwargs.get(name, value) for name, value in zip(names, given, strict=True)]


def _own(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and len(node.users) == 1


def _patches(args: list[Any], graph: Graph, weight: str) -> Patches:
    kernel = graph.params[weight].shape[2:]
    stride, padding, dilation = args[3:6]
    return Patches(pair(kernel, 1), pair(stride, 1), pair(padding, 0), pair(dilation, 1), int(args[6]))


def _as_norm(node: fx.Node) -> Norm | None:
    if str(node.target) != "aten.batch_norm.default":
        return None
    _, weight, bias, mean, var, _, _, eps, _ = _filled(node)
    parts = (weight, bias, mean, var)
    if not all(
        isinstance(part, fx.Node) and part.op == "get_attr" and len(part.users) == 1 for part in parts
    ):
        return None
    gamma, beta, running_mean, running_var = (str(part.target) for part in parts)
    return Norm(node, gamma, beta, running_mean, running_var, float(eps))


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _norm_after(node: fx.Node) -> Norm | None:
    reader = _only_reader(node)
    norm = None if reader is None else _as_norm(reader)
    return norm if norm is not None and norm.node.args[0] is node else None


def _range_after(node: fx.Node) -> Range | None:
    """The range of the ReLU, ReLU6 or the like that alone reads a node."""
    reader = _only_reader(node)
    name = "" if reader is None else str(reader.target).replace("_.", ".")
    if name == "aten.relu.default":
        return Range()
    if reader is not None and name == "aten.hardtanh.default":
        low, high = _filled(reader)[1:3]
        return Range(float(low), float(high))
    return None


def _sum_after(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The residual addition behind a node and its other operand."""
    reader = _only_reader(node)
    while reader is not None and str(reader.target) in _PASSED:
        node, reader = reader, _only_reader(reader)
    if reader is None or str(reader.target) not in _ADDS or reader.kwargs.get("alpha", 1) != 1:
        return None, None
    operands = reader.args[:2]
    other = operands[1] if operands[0] is node else operands[0]
    if not isinstance(other, fx.Node) or other is node or other.op == "get_attr":
        return None, None
    mine, its = node.meta.get("val"), other.meta.get("val")
    if not isinstance(mine, Tensor) or not isinstance(its, Tensor):
        return None, None
    return (reader, other) if tuple(mine.shape[1:]) == tuple(its.shape[1:]) else (None, None)
