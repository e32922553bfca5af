"""What stands behind a layer in a traced graph: a bias, a batch norm, a residual sum, an activation."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from penjing.graph import Graph
from penjing.prune.nodes import (
    COPIES,
    filled,
    is_one_of,
    only_reader,
    order_of,
    parameter,
    rank_of,
    same_type,
    shape_of,
)
from penjing.prune.rectified import Range

_ADDS = {"aten.add.Tensor", "aten.add_.Tensor"}
_SUBTRACTIONS = {"aten.sub.Tensor", "aten.sub_.Tensor", "aten.subtract.Tensor"}
_PRODUCTS = {"aten.mul.Tensor", "aten.mul_.Tensor"}
_ROOTS = {"aten.rsqrt.default", "aten.rsqrt_.default"}
_DROPOUTS = {"aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default"}


@dataclass(frozen=True)
class Norm:
    """A batch norm in eval mode: names of its tensors.

    Attributes:
        node: Its node, or the last of the operations that it is written as.
        first: Its node, or the first of them.
        source: What it normalises.
        channel: The dimension of channels of that.
        weight, bias, mean, var: Names of γ, β and the running statistics.
        eps: Added to the variance.
    """

    node: fx.Node
    first: fx.Node
    source: fx.Node
    channel: int
    weight: str
    bias: str
    mean: str
    var: str
    eps: float


@dataclass(frozen=True)
class Behind:
    """What stands behind a layer.

    Attributes:
        shift: Name of a vector that shifts the output, and the sign: the layer's own bias or one added behind
            it (+1), or the mean that the norm behind it takes away (-1). None where nothing does.
        late: Name of the bias that is added behind the node, or None.
        norm: The batch norm that alone reads it, or None.
        total: The addition that alone reads it (through the norm and dropout), or None: a residual sum.
        other: The other operand of that addition.
        bounds: Range of the ReLU that alone reads what the layer ends in (the sum, the norm, or itself).
        turn: What stands behind, its dimensions so permuted, is laid out as the layer's output.
    """

    shift: tuple[str, int] | None = None
    late: str | None = None
    norm: Norm | None = None
    total: fx.Node | None = None
    other: fx.Node | None = None
    bounds: Range | None = None
    turn: tuple[int, ...] | None = None

    @property
    def shiftable(self) -> bool:
        """Whether the layer's output can be shifted."""
        return self.shift is not None

    def laid_out(self, behind: Tensor) -> Tensor:
        """A value from behind the layer, laid out as the layer's output."""
        return behind if self.turn is None else behind.permute(self.turn)


def find_norms(graph: Graph) -> list[Norm]:
    """Batch norms with scale, offset and running statistics that are one op of the graph."""
    found = (_as_norm(node) for node in graph.module.graph.nodes)
    return [norm for norm in found if norm is not None]


@dataclass
class _Way:
    """A way from a layer onwards.

    Attributes:
        node: Where it has come to.
        order: The layer's dimensions in the order of this node's.
        channel: The layer's dimension of channels.
        calls: How often the layer is called, and so all that belongs to it.
    """

    node: fx.Node
    order: tuple[int, ...]
    channel: int
    calls: int

    @property
    def at(self) -> int:
        """The dimension of channels here."""
        return self.order.index(self.channel)

    def go(self, dropout: bool = False) -> None:
        """On past what only turns or copies, and dropout, which does nothing in eval mode."""
        while (reader := only_reader(self.node)) is not None:
            order = order_of(reader, len(self.order))
            if order is not None:
                self.order = tuple(self.order[at] for at in order)
            elif not (
                (str(reader.target) in COPIES and same_type(reader, self.node))
                or (dropout and str(reader.target) in _DROPOUTS)
            ):
                return
            self.node = reader

    @property
    def turn(self) -> tuple[int, ...] | None:
        """The permutation that leads back to the layer's layout."""
        back = tuple(self.order.index(dim) for dim in range(len(self.order)))
        return None if back == tuple(range(len(back))) else back


def what_follows(
    node: fx.Node, channel: int, bias: str | None, params: Container[str], calls: int = 1
) -> Behind:
    """What stands behind a call of a layer.

    Args:
        node: The layer's node.
        channel: Its dimension of channels, counted from the end where negative.
        bias: Name of its own bias, or None.
        params: Names of what may be taken for a bias.
        calls: How often the layer is called: a bias or norm behind it is read as often, or is not its own.
    """
    rank = rank_of(node)
    if rank is None:
        return Behind(shift=None if bias is None else (bias, 1))
    way = _Way(node, tuple(range(rank)), channel % rank, calls)
    way.go()
    late = None if bias is not None else _added_vector(way)
    late = late if late in params else None
    if late is not None:
        way.node = next(iter(way.node.users))
        way.go()
    norm = _norm_after(way)
    shift = (name, 1) if (name := bias or late) else (norm.mean, -1) if norm else None
    if norm is not None:
        way.node = norm.node
    way.go(dropout=True)
    total, other = _sum_after(way.node)
    turn = way.turn
    if total is not None:
        way.node = total
        way.go()
    return Behind(shift, late, norm, total, other, _range_after(way.node), turn)


def _added_vector(way: _Way) -> str | None:
    """The vector over channels that alone is added here."""
    reader = only_reader(way.node)
    if reader is None or str(reader.target) not in _ADDS or reader.kwargs.get("alpha", 1) != 1:
        return None
    first, second = reader.args[:2]
    return _vector(second if first is way.node else first, way)


def _vector(node: Any, way: _Way) -> str | None:
    """The name of a tensor of the network with one number a channel."""
    found = parameter(node, way.calls)
    if found is None:
        return None
    name, dims = found
    shape = shape_of(node)
    place = way.at - (len(way.order) - len(shape))  # shapes are aligned at their ends
    channels = shape_of(way.node)[way.at]
    alone = all(size == 1 for at, size in enumerate(shape) if at != place)
    return name if alone and 0 <= place < len(shape) and shape[place] == channels and dims else None


def _norm_after(way: _Way) -> Norm | None:
    reader = only_reader(way.node)
    norm = None if reader is None else _as_norm(reader, way.calls) or _as_written_norm(reader, way)
    return norm if norm is not None and norm.source is way.node and norm.channel == way.at else None


def _as_norm(node: fx.Node, calls: int = 1) -> Norm | None:
    if str(node.target) != "aten.batch_norm.default":
        return None
    source, weight, bias, mean, var, _, _, eps, _ = filled(node)
    names = [parameter(part, calls) for part in (weight, bias, mean, var)]
    gamma, beta, running_mean, running_var = (None if name is None else name[0] for name in names)
    if gamma is None or beta is None or running_mean is None or running_var is None:
        return None
    return Norm(node, node, source, 1, gamma, beta, running_mean, running_var, float(eps))


def _as_written_norm(node: fx.Node, way: _Way) -> Norm | None:
    """``(x - mean) · (rsqrt(var + eps) · γ) + β``, as Keras writes it; ``node`` takes the mean away."""
    scaled, shifted = only_reader(node), None
    if scaled is not None:
        shifted = only_reader(scaled)
    gain = _operand(scaled, _PRODUCTS, node)
    inverse = gain.args[0] if isinstance(gain, fx.Node) and is_one_of(gain, _PRODUCTS) else None
    spread = inverse.args[0] if isinstance(inverse, fx.Node) and is_one_of(inverse, _ROOTS) else None
    if not isinstance(spread, fx.Node) or not is_one_of(spread, _ADDS) or not isinstance(gain, fx.Node):
        return None
    eps = spread.args[1]
    names = [
        _vector(part, way)
        for part in (
            gain.args[1],
            _operand(shifted, _ADDS, scaled),
            _operand(node, _SUBTRACTIONS, way.node),
            spread.args[0],
        )
    ]
    gamma, beta, mean, var = names
    if gamma is None or beta is None or mean is None or var is None or not isinstance(eps, float | int):
        return None
    assert shifted is not None
    return Norm(shifted, node, way.node, way.at, gamma, beta, mean, var, float(eps))


def _operand(node: fx.Node | None, ops: set[str], first: Any) -> Any:
    """The second operand of one of these ops whose first is given; None for anything else."""
    if node is None or not is_one_of(node, ops) or node.args[0] is not first or len(node.args) < 2:
        return None
    return node.args[1]


def _sum_after(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The residual addition behind a node and its other operand."""
    reader = only_reader(node)
    if reader is None or not is_one_of(reader, _ADDS) or reader.kwargs.get("alpha", 1) != 1:
        return None, None
    operands = reader.args[:2]
    other = operands[1] if operands[0] is node else operands[0]
    if not isinstance(other, fx.Node) or other is node or other.op == "get_attr":
        return None, None
    mine, its = node.meta.get("val"), other.meta.get("val")
    if not isinstance(mine, Tensor) or not isinstance(its, Tensor):
        return None, None
    return (reader, other) if tuple(mine.shape[1:]) == tuple(its.shape[1:]) else (None, None)


def _range_after(node: fx.Node) -> Range | None:
    """The range of the ReLU, ReLU6 or the like that alone reads a node."""
    reader = only_reader(node)
    name = "" if reader is None else str(reader.target).replace("_.", ".")
    if name == "aten.relu.default":
        return Range()
    if reader is not None and name == "aten.hardtanh.default":
        low, high = filled(reader)[1:3]
        return Range(float(low), float(high))
    return None
