"""Features of a traced graph, which has the original's layer names but none of its layers to hook."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx

from penjing.errors import RecoverError
from penjing.graph import GraphModel

_LINEAR = "aten.linear.default"


def linear_layers(model: GraphModel) -> list[str]:
    """Names of the layers that are linear, in the order of computation."""
    weights = (str(node.args[1]) for node in model.graph.nodes if str(node.target) == _LINEAR)
    names = {node.name: str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    return [names[weight].rpartition(".")[0] for weight in weights if weight in names]


def layers_of(model: GraphModel, module: str) -> list[str]:
    """Names of the weights of a module and of what is in it, as far as the graph still reads them."""
    reads = [node for node in model.graph.nodes if node.op == "get_attr" and node.users]
    params = dict(model.named_parameters())
    names = [str(node.target) for node in reads if str(node.target).startswith(f"{module}.")]
    return [name for name in names if name in params and params[name].ndim > 1]


def exit_of(graph: fx.Graph, module: str) -> fx.Node | None:
    """The value that leaves a module; None where none does, or several."""
    inside = {
        node
        for node in graph.nodes
        if any(path == module for path, _ in (node.meta.get("nn_module_stack") or {}).values())
    }
    leaving = [node for node in inside if not inside >= node.users.keys()]
    return leaving[0] if len(leaving) == 1 else None


def tap(model: GraphModel, layer: str, side: str, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    """Have ``keep`` called with a layer's input or output whenever the graph runs.

    Args:
        model: The traced network; its code is written anew.
        layer: Name of a layer whose tensors one op reads, or, for the output, of a block of layers.
        side: ``"input"`` or ``"output"``.
        keep: Is given the value.

    Returns:
        What takes the tap out again.

    Raises:
        RecoverError: where several ops read the layer's tensors, or none: what it gives is then not known.
    """
    source = _source(model.graph, layer, side)

    def kept(value: Tensor) -> Tensor:
        keep(value)
        return value

    with model.graph.inserting_after(source):
        node = model.graph.call_function(kept, (source,))
    source.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    model.recompile()

    def remove() -> None:
        node.replace_all_uses_with(source)
        model.graph.erase_node(node)
        model.recompile()

    return remove


def _source(graph: fx.Graph, layer: str, side: str) -> fx.Node:
    """The node whose value is a layer's input or output."""
    if side == "output" and (leaving := exit_of(graph, layer)) is not None:
        return leaving  # what reads a tensor of its own may stand at the start of a block
    reads = {
        node for node in graph.nodes if node.op == "get_attr" and str(node.target).rpartition(".")[0] == layer
    }
    ops = [node for node in graph.nodes if reads.intersection(node.all_input_nodes)]
    if len(ops) != 1:
        raise RecoverError(
            f"{len(ops)} operations of the traced graph read this layer: its {side} is not known",
            layer=layer,
            remedy="Name a single convolution, norm or linear layer",
        )
    source = ops[0].args[0] if side == "input" else ops[0]
    assert isinstance(source, fx.Node)
    return source
