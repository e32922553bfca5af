"""Where a network can be refitted: layers that read pruned channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from penjing.graph import Graph
from penjing.prune.behind import Behind, what_follows
from penjing.prune.moments import Patches
from penjing.prune.nodes import filled, parameter, rank_of

_CONVS = {f"aten.conv{rank}d.{kind}" for rank in (1, 2, 3) for kind in ("default", "padding")}
_PRODUCTS = {"aten.matmul.default", "aten.mm.default"}


@dataclass(frozen=True)
class Place:
    """One layer that can be refitted.

    Attributes:
        node: Its node: a convolution, or a product with a matrix.
        source: What it reads.
        weight: Name of its weight.
        dims: The weight's dimension behind each of ``[out, in, …]``; None where the op reads a size of 1 that
            the weight has not.
        patches: How rows of its input are cut.
        behind: What stands behind it.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    dims: tuple[int | None, ...]
    patches: Patches
    behind: Behind

    def kernel(self, params: Mapping[str, Tensor]) -> Tensor:
        """The weight as the op reads it, ``[out, in, …]``: a view, to write into as well."""
        weight = params[self.weight]
        read = [dim for dim in self.dims if dim is not None]
        left = [dim for dim in range(weight.dim()) if dim not in read]  # of size 1
        turned = weight.permute(*read, *left)
        sizes = [1 if dim is None else weight.shape[dim] for dim in self.dims]
        return turned.view(sizes)


def find_places(graph: Graph) -> dict[str, Place]:
    """Layers by weight name: convolutions (grouped ones too) and products with a matrix, no weight shared.

    A weight may come turned or reshaped, and a bias may be added behind the layer, in another layout too (as
    Keras and the Conv1D of GPT do it).
    """
    places: dict[str, Place] = {}
    for node in graph.module.graph.nodes:
        layer = _layer(node)
        weight = None if layer is None else parameter(layer.weight)
        if layer is None or weight is None or weight[0] not in graph.params:
            continue
        name, dims = weight
        dims = dims[::-1] if layer.turned else dims
        bias = None
        if layer.bias is not None:
            if (read := parameter(layer.bias)) is None:
                continue
            bias = read[0]
        patches = _patches(node, [graph.params[name].shape[d] if d is not None else 1 for d in dims[2:]])
        behind = what_follows(node, 1 if patches.kernel else -1, bias, graph.params)
        places[name] = Place(node, layer.source, name, dims, patches, behind)
    return places


@dataclass(frozen=True)
class _Layer:
    """Arguments of an op that multiplies with a weight; ``turned`` where the weight is ``[in, out]``."""

    source: fx.Node
    weight: Any
    bias: Any = None
    turned: bool = False


def _layer(node: fx.Node) -> _Layer | None:
    name, args = str(node.target), filled(node)
    if name in _CONVS or name == "aten.linear.default":
        return _Layer(args[0], args[1], args[2])
    if name in _PRODUCTS and rank_of(args[1]) == 2 and (rank_of(args[0]) or 0) >= 2:
        return _Layer(args[0], args[1], turned=True)
    if name == "aten.addmm.default" and node.kwargs.get("alpha", 1) == node.kwargs.get("beta", 1) == 1:
        return _Layer(args[1], args[2], args[0], turned=True)
    return None


def _patches(node: fx.Node, kernel: Sequence[int]) -> Patches:
    if str(node.target) not in _CONVS:
        return Patches()
    stride, padding, dilation, groups = filled(node)[3:7]
    stride, dilation = (_each(values, len(kernel)) for values in (stride, dilation))
    if padding == "same":  # what is odd goes behind
        totals = [spread * (size - 1) for spread, size in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(side, side) for side in _each(0 if padding == "valid" else padding, len(kernel))]
    return Patches(tuple(kernel), stride, tuple(sides), dilation, int(groups))


def _each(values: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for each dimension of space; a single one stands for all."""
    given = (values,) if isinstance(values, int) else tuple(values)
    return given * rank if len(given) == 1 else given
