"""The traced graph, sliced: a new graph of the same ops on smaller tensors."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, fx, nn

from penjing.errors import PruneError
from penjing.graph import Coupling, Graph, is_kept_whole, positions
from penjing.graph.axes import Axis
from penjing.graph.tree import Held, graph_module
from penjing.prune.ranges import Positions
from penjing.prune.slicing.site import REWRITERS, Rewriter, Site


def slice_tensors(graph: Graph, coupling: Coupling, kept: Mapping[int, Positions]) -> dict[str, Tensor]:
    """Every parameter, buffer and constant of the graph with only what is kept; untouched ones are copied.

    Parameters stay `nn.Parameter` with their ``requires_grad``.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in (*graph.params.items(), *graph.buffers.items()):
        out[name] = slice_tensor(tensor, kept_dims(coupling, name, kept))
    return out


def kept_dims(coupling: Coupling, name: str, kept: Mapping[int, Positions]) -> dict[int, Positions]:
    """``{dim: kept positions}`` of the dims of one tensor that lose something."""
    return cut_dims(coupling.tensors.get(name, ()), kept)


def cut_dims(axes: Sequence[Axis], kept: Mapping[int, Positions]) -> dict[int, Positions]:
    """``{dim: kept positions}`` of the axes that lose something."""
    return {d: positions(axis, kept) for d, axis in enumerate(axes) if not is_kept_whole(axis, kept)}


def slice_tensor(tensor: Tensor, dims: Mapping[int, Positions]) -> Tensor:
    """A copy of the tensor with the kept positions of some dims, contiguous like the original's memory
    format.
    """
    value = tensor.detach()
    for dim, keep in dims.items():
        value = value.index_select(dim, torch.from_numpy(keep).to(value.device))
    if not dims:
        value = value.clone()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def slice_graph(
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[int, Positions],
    tensors: Mapping[str, Tensor] | None = None,
) -> Graph:
    """Slice parameters and constants, and rewrite the sizes written into the ops.

    Args:
        graph: The traced network; not changed.
        coupling: Its solved axes.
        kept: Kept slots by leaf id.
        tensors: What `slice_tensors` gave, to share tensors with another copy of the model.

    Returns:
        A new graph that shares no storage with the old one (but with ``tensors``).

    Raises:
        PruneError: naming op and source line where an op cannot follow.
    """
    tensors = dict(slice_tensors(graph, coupling, kept) if tensors is None else tensors)
    sliced = copy.deepcopy(graph.module.graph)
    originals = {node.name: node for node in graph.module.graph.nodes}
    constants: dict[str, Tensor] = {}

    def add_constant(value: Tensor) -> str:
        name = f"_penjing_index_{len(constants)}"
        constants[name] = value
        return name

    for node in list(sliced.nodes):
        if node.op == "call_function":
            _rewrite(Site(node, graph, coupling, kept, originals, add_constant, tensors.__setitem__))
        if node.op == "placeholder":
            continue  # inputs keep their shapes, which an artifact tells
        for key in ("val", "example_value", "tensor_meta"):
            node.meta.pop(key, None)
    for name, value in constants.items():
        tensors[name] = value
    drop_unused_reads(sliced)
    held = [Held(h.name, tensors[graph.aliases.get(h.name, h.name)], h.persistent) for h in graph.held()]
    held += [Held(name, value, persistent=False) for name, value in constants.items()]
    module = graph_module(held, sliced, "Pruned")
    return replace(
        graph,
        module=module,
        training=None,
        params={name: tensors[name] for name in graph.params},
        buffers={name: tensors[name] for name in (*graph.buffers, *constants)},
    )


def drop_unused_reads(graph: fx.Graph) -> None:
    """Erase reads of tensors that nothing uses any more."""
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _rewrite(site: Site) -> None:
    name = _op_name(site.node)
    rewriter = rewriters().get(name)
    if rewriter is None or not _touched(site):
        return
    try:
        rewriter(site)
    except PruneError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise site.error(f"{type(error).__name__}: {error}") from error


def _touched(site: Site) -> bool:
    """Whether an output or an input of the node loses anything."""
    values = (site.node, *site.node.all_input_nodes)
    return any(
        not site.whole(axis)
        for value in values
        for axes in site.coupling.values.get(value.name, ())
        for axis in axes
    )


def _op_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.")


@cache
def rewriters() -> Mapping[str, Rewriter]:
    """Every rewriter by op: each module of `penjing.prune.slicing` registers its own."""
    import penjing.prune.slicing as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return REWRITERS
