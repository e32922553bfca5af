"""Where a network can be refitted: layers that read pruned channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from penjing.graph import Graph
from penjing.prune.behind import Behind, Norm, what_follows
from penjing.prune.circles import without_circles
from penjing.prune.moments import Patches
from penjing.prune.nodes import filled, parameter, rank_of

_CONVS = {f"aten.conv{rank}d.{kind}" for rank in (1, 2, 3) for kind in ("default", "padding")}
_PRODUCTS = {"aten.matmul.default", "aten.mm.default"}


@dataclass(frozen=True)
class Call:
    """One use of a layer.

    Attributes:
        node: Its node: a convolution, or a product with a matrix.
        source: What it reads.
        behind: What stands behind it.
    """

    node: fx.Node
    source: fx.Node
    behind: Behind

    @property
    def needed(self) -> list[fx.Node]:
        """What a refit has to know before: the input, and the other side of the residual sum."""
        other = self.behind.other
        return [self.source] if other is None else [self.source, other]


@dataclass(frozen=True)
class Place:
    """One layer that can be refitted.

    Attributes:
        calls: Its uses, none of which needs another; most layers have one.
        weight: Name of its weight.
        dims: The weight's dimension behind each of ``[out, in, …]``; None where the op reads a size of 1 that
            the weight has not.
        patches: How rows of its input are cut.
    """

    calls: tuple[Call, ...]
    weight: str
    dims: tuple[int | None, ...]
    patches: Patches

    @property
    def behind(self) -> Behind:
        """What stands behind the first call; shift, norm and range are the same behind all."""
        return self.calls[0].behind

    def kernel(self, params: Mapping[str, Tensor]) -> Tensor:
        """The weight as the op reads it, ``[out, in, …]``: a view, to write into as well."""
        weight = params[self.weight]
        read = [dim for dim in self.dims if dim is not None]
        left = [dim for dim in range(weight.dim()) if dim not in read]  # of size 1
        turned = weight.permute(*read, *left)
        sizes = [1 if dim is None else weight.shape[dim] for dim in self.dims]
        return turned.view(sizes)


def find_places(graph: Graph) -> dict[str, Place]:
    """Layers by weight name: convolutions (grouped ones too) and products with a matrix.

    A weight may come turned or reshaped, and a bias may be added behind the layer, in another layout too (as
    Keras and the Conv1D of GPT do it). A layer may be called several times (a head on several levels, an
    encoder of two inputs), but not on what it or a layer behind it gave.
    """
    nodes = graph.module.graph.nodes
    readers = {str(node.target): len(node.users) for node in nodes if node.op == "get_attr"}
    found: dict[str, list[Place]] = {}
    for node in nodes:
        place = _place(graph, node, readers)
        if place is not None:
            found.setdefault(place.weight, []).append(place)
    # a weight that something else reads too is no layer's own
    places = {name: _joined(parts) for name, parts in found.items() if len(parts) == readers[name]}
    return without_circles(graph, {name: place for name, place in places.items() if place is not None})


def _place(graph: Graph, node: fx.Node, readers: Mapping[str, int]) -> Place | None:
    """One call of a layer; ``readers`` says how often each tensor is read."""
    layer = _layer(node)
    weight = None if layer is None else parameter(layer.weight, None)
    if layer is None or weight is None or weight[0] not in graph.params:
        return None
    name, dims = weight
    dims = dims[::-1] if layer.turned else dims
    calls, bias = readers[name], None
    if layer.bias is not None:
        if (read := parameter(layer.bias, calls)) is None:
            return None
        bias = read[0]
    patches = _patches(node, [graph.params[name].shape[d] if d is not None else 1 for d in dims[2:]])
    behind = what_follows(node, 1 if patches.kernel else -1, bias, graph.params, calls)
    return Place((Call(node, layer.source, behind),), name, dims, patches)


def _joined(parts: Sequence[Place]) -> Place | None:
    """A layer with all its calls; None where they read its weight in different ways."""
    first = parts[0]
    if any((part.dims, part.patches) != (first.dims, first.patches) for part in parts):
        return None
    all_behind = [part.behind for part in parts]
    if any(behind.shift != all_behind[0].shift for behind in all_behind):
        all_behind = [replace(behind, shift=None) for behind in all_behind]
    if any(
        _gamma(b.norm) != _gamma(all_behind[0].norm) or b.bounds != all_behind[0].bounds for b in all_behind
    ):
        all_behind = [
            replace(behind, norm=None, total=None, other=None, bounds=None) for behind in all_behind
        ]
    calls = [replace(part.calls[0], behind=b) for part, b in zip(parts, all_behind, strict=True)]
    return replace(first, calls=tuple(calls))


def _gamma(norm: Norm | None) -> str | None:
    return None if norm is None else norm.weight


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
