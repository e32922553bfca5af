"""Small rewrites that make an exported graph easier to reason about and free of baked sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from penjing.graph.shuffle import fuse_shuffles

aten = torch.ops.aten

# Checks of dtype, device and sizes that export leaves behind: true by construction, and sizes change when
# pruned.
CHECKS = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
}
VIEWS = {
    "aten.view.default": 1,
    "aten.reshape.default": 1,
    "aten._unsafe_view.default": 1,
    "aten.unflatten.int": 2,
}
# Ops whose gradient is computed from their output, so that nothing may be written over it.
_KEPT = ["_softmax", "sigmoid", "tanh", "exp", "sqrt", "rsqrt", "reciprocal", "relu", "softplus", "elu"]
KEPT_OUTPUTS = {"aten.softmax.int", "aten.log_softmax.int", *(f"aten.{name}.default" for name in _KEPT)}
# Second names of ops; export keeps whichever the forward used.
_SYNONYMS = {
    "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctan2": "atan2", "arctanh": "atanh", "fix": "trunc", "linalg_matmul": "matmul", "negative": "neg",
    "row_stack": "vstack",
}  # fmt: skip
SYNONYMS = {f"aten.{name}.default": getattr(aten, same).default for name, same in _SYNONYMS.items()}
WRAPPERS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}


def tidy(
    module: fx.GraphModule, aliases: Mapping[str, str], known: Set[str], notes: list[str], prefix: str = ""
) -> dict[str, Tensor]:
    """Rewrite the graph in place.

    Args:
        module: The exported graph.
        aliases: Other names of shared tensors → first name.
        known: Names of the model's parameters and buffers.
        notes: Takes what the reader should know.
        prefix: Put before the names of constants.

    Returns:
        The constants it reads that are no parameter or buffer of the model, by name.
    """
    graph = module.graph
    inline_wrappers(module, notes)
    for node in list(graph.nodes):
        if node.op == "call_module" or str(node.target) in CHECKS or node.name == "_guards_fn":
            graph.erase_node(node)
        elif str(node.target) == "aten.alias.default":
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "get_attr":
            node.target = aliases.get(str(node.target), str(node.target))
        else:
            node.target = SYNONYMS.get(str(node.target), node.target)
    drop_whole_selections(module)
    free_views(graph)
    explicit_scale(graph)
    write_apart(graph)
    constants = fuse_shuffles(graph)
    for name, index in constants.items():
        module.register_buffer(name, index, persistent=False)
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.op == "get_attr" or _is_scalar(node)):
            graph.erase_node(node)
    graph.lint()
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            name = str(node.target)
            node.target = prefix + name
            constants[node.target] = constants.pop(name) if name in constants else _attribute(module, name)
    return constants


def _is_scalar(node: fx.Node) -> bool:
    """Whether a node computes a size or another Python number, so that it has no side effect."""
    return node.op == "call_function" and isinstance(
        node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool
    )


def _attribute(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def inline_wrappers(module: fx.GraphModule, notes: list[str]) -> None:
    """Replace ``with torch.autocast(...)`` and ``with torch.no_grad()`` blocks by their contents."""
    graph = module.graph
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name not in WRAPPERS:
            continue
        position = WRAPPERS[name]
        if name == "wrap_with_autocast" and node.args[2]:
            notes.append("an autocast block inside the forward runs in the precision of its inputs")
        body: fx.GraphModule = _attribute(module, str(node.args[position].target))
        inline_wrappers(body, notes)
        prefix = str(node.args[position].target)
        results = _inline(graph, node, body, list(node.args[position + 1 :]), prefix, module)
        if name == "wrap_with_set_grad_enabled" and not node.args[0]:
            with graph.inserting_before(node):
                results = [_detached(graph, result) for result in results]
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def write_apart(graph: fx.Graph) -> None:
    """Ops in place on what a gradient needs get a result of their own, where nothing else sees the argument.

    A custom autograd function may write so (its own backward knows); in the graph its ops are plain ones.
    """
    for node in graph.nodes:
        name = str(node.target)
        packet, _, overload = name.removeprefix("aten.").rpartition(".")
        if node.op != "call_function" or not name.startswith("aten.") or not packet.endswith("_"):
            continue
        source = node.args[0]
        if isinstance(source, fx.Node) and str(source.target) in KEPT_OUTPUTS and len(source.users) == 1:
            node.target = getattr(getattr(aten, packet[:-1]), overload)


def _detached(graph: fx.Graph, result: Any) -> Any:
    if not isinstance(result, fx.Node):
        return result
    node = graph.call_function(aten.detach.default, (result,))
    node.meta = dict(result.meta)
    return node


def _inline(
    graph: fx.Graph, call: fx.Node, body: fx.GraphModule, args: list[Any], prefix: str, module: fx.GraphModule
) -> list[Any]:
    env: dict[fx.Node, Any] = {}
    inputs = iter(args)
    with graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(inputs)
            elif node.op == "output":
                values = node.args[0]
                values = values if isinstance(values, tuple | list) else [values]
                return [env[value] if isinstance(value, fx.Node) else value for value in values]
            else:
                env[node] = graph.node_copy(node, lambda old: env[old])
                if node.op == "get_attr":
                    target = f"{prefix}_{node.target}".replace(".", "_")
                    setattr(module, target, _attribute(body, str(node.target)))
                    env[node].target = target
    raise AssertionError("a traced block without output")


def drop_whole_selections(module: fx.GraphModule) -> None:
    """Read the source where an index counts through all of it, whatever the batch.

    ONNX exporters write a flatten by strides so (``as_strided``): positions made from ranges, then gathered.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.index_select.default):
        source, dim, index = node.args
        size = source.meta["val"].shape[dim]
        try:
            whole = all(torch.equal(_at(b, index, module), torch.arange(_size(size, b))) for b in (2, 3))
        except LookupError:
            continue
        if whole:
            node.replace_all_uses_with(source)
            unused = [node]
            while unused:
                gone = unused.pop()
                graph.erase_node(gone)
                unused += [n for n in gone.all_input_nodes if not n.users and n.op == "call_function"]


def _at(batch: int, node: fx.Node, module: nn.Module) -> Any:
    """Value of what follows from constants and sizes alone, at some batch size.

    Raises:
        LookupError: if it depends on more.
    """
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt) and not free_unbacked_symbols(value):
        return _size(value, batch)
    if node.op == "get_attr" and not isinstance(held := _attribute(module, str(node.target)), nn.Parameter):
        return held.detach().cpu()
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        raise LookupError(node.name)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: _at(batch, source, module))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _size(size: int | torch.SymInt, batch: int) -> int:
    if isinstance(size, int):
        return size
    if free_unbacked_symbols(size):
        raise LookupError(str(size))
    return int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, batch)))


def free_views(graph: fx.Graph) -> None:
    """Write -1 for the one computed size of a view, so that nothing of a product with the batch is baked."""
    for node in graph.nodes:
        position = VIEWS.get(str(node.target)) if node.op == "call_function" else None
        if position is None:
            continue
        sizes = list(node.args[position])
        computed = [place for place, size in enumerate(sizes) if isinstance(size, fx.Node)]
        if len(computed) != 1 or (-1 in sizes and str(sizes[computed[0]].target) == "aten.sym_size.int"):
            continue
        if -1 in sizes:  # a product with the batch and a -1: the -1 moves
            place = sizes.index(-1)
            size = node.meta["val"].shape[place - len(sizes)] if position == 1 else None
            if not isinstance(size, int):
                continue
            sizes[place] = size
        sizes[computed[0]] = -1
        node.update_arg(position, sizes)


def explicit_scale(graph: fx.Graph) -> None:
    """Write out the 1/sqrt(head_dim) that scaled dot-product attention would take from the (pruned) size.

    The node's ``meta["implicit_scale"]`` says so: the class it comes from will take the pruned size.
    """
    for node in graph.nodes:
        if (
            str(node.target) == "aten.scaled_dot_product_attention.default"
            and node.kwargs.get("scale") is None
        ):
            size = node.args[0].meta["val"].shape[-1]
            node.update_kwarg("scale", 1.0 / math.sqrt(int(size)))
            node.meta["implicit_scale"] = True
