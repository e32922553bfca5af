"""A traced graph as plain JSON and back: nodes, operators, arguments, signature; tensors elsewhere."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from penjing.errors import ArtifactError, ExportError
from penjing.export.program_ops import target_name, target_named
from penjing.export.program_values import decode_tree, decode_value, encode_tree, encode_value
from penjing.graph.source import source_of

_REMEDY_DAMAGED = "Write the file again from the original model; do not edit it by hand"


def encode_graph(module: fx.GraphModule) -> dict[str, Any]:
    """Describe the graph of ``module`` in plain data.

    Raises:
        ExportError: for an operator or an argument that a stored program cannot hold, naming the node.
    """
    nodes = []
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target == "_guards_fn":
            continue  # torch.export's own input checks: rebuilt from the inputs, never stored
        nodes.append(_encode_node(node))
    data: dict[str, Any] = {"nodes": nodes}
    codegen = module.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        info = codegen.pytree_info
        data["arguments"] = list(info.orig_args)
        data["inputs"] = encode_tree(info.in_spec)
        data["outputs"] = None if info.out_spec is None else encode_tree(info.out_spec)
    return data


def _encode_node(node: fx.Node) -> dict[str, Any]:
    def unsupported(value: object) -> ExportError:
        return ExportError(
            f"argument {value!r} of {node.target} has no plain form, so the program cannot be stored",
            layer=node.name,
            remedy="Compute this value from tensors inside the model's forward",
        )

    target = node.target if isinstance(node.target, str) else target_name(node.target)
    if node.op not in ("placeholder", "get_attr", "call_function", "output") or target is None:
        raise ExportError(
            f"operator {node.target} ({node.op}) cannot be stored in a program",
            layer=node.name,
            remedy="Replace this custom operator by torch operators in the model's forward",
        )
    data: dict[str, Any] = {"name": node.name, "op": node.op, "target": target}
    if node.args:
        data["args"] = [encode_value(argument, unsupported) for argument in node.args]
    if node.kwargs:
        data["kwargs"] = {key: encode_value(argument, unsupported) for key, argument in node.kwargs.items()}
    if source := source_of(node):
        data["source"] = source
    if node.op == "placeholder" and (example := _example(node)):
        data["example"] = example
    return data


def _example(node: fx.Node) -> dict[str, Any] | None:
    """Dtype and shape of a tensor input; sizes that may vary are ``"batch"``."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return node.meta.get("penjing_example")
    shape = [size if isinstance(size, int) else "batch" for size in value.shape]
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def decode_graph(data: Mapping[str, Any], root: nn.Module) -> fx.GraphModule:
    """Build the graph that `encode_graph` described; parameters and buffers are taken from ``root``.

    Raises:
        ArtifactError: when the data is damaged or names a function that a stored program may not call.
    """
    for name, inner in data.get("nested", {}).items():
        _check_name(name)
        root.add_module(
            name, decode_graph(inner, root.get_submodule(name) if hasattr(root, name) else nn.Module())
        )
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in data["nodes"]:
        node = _decode_node(graph, entry, nodes)
        if node.name != entry["name"]:
            raise ArtifactError(f"node name {entry['name']!r} is taken or malformed", remedy=_REMEDY_DAMAGED)
        if "example" in entry:
            node.meta["penjing_example"] = entry["example"]
        nodes[node.name] = node
    if "arguments" in data:
        for name in data["arguments"]:
            _check_name(name)
        outputs = data["outputs"]
        info = _PyTreeInfo(
            list(data["arguments"]),
            decode_tree(data["inputs"]),
            None if outputs is None else decode_tree(outputs),
        )
        graph.set_codegen(_PyTreeCodeGen(info))
    graph.lint()
    return fx.GraphModule(root, graph)


def _decode_node(graph: fx.Graph, entry: Mapping[str, Any], nodes: Mapping[str, fx.Node]) -> fx.Node:
    op, target = entry["op"], entry["target"]
    args = tuple(decode_value(argument, nodes) for argument in entry.get("args", []))
    kwargs = {_check_name(key): decode_value(value, nodes) for key, value in entry.get("kwargs", {}).items()}
    match op:
        case "call_function":
            called: Any = target_named(target, ArtifactError)
        case "placeholder":
            called = _check_name(target)
        case "get_attr":
            called = check_tensor_name(target)
        case "output":
            called = "output"
        case _:
            raise ArtifactError(f"{op!r} is no kind of node that a program may hold", remedy=_REMEDY_DAMAGED)
    return graph.create_node(op, called, args, kwargs, name=_check_name(entry["name"]))


def _check_name(name: object) -> str:
    """Names become Python code inside ``fx.GraphModule``: they must be identifiers and nothing else."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ArtifactError(f"{name!r} is not a name that a program may hold", remedy=_REMEDY_DAMAGED)
    return name


def check_tensor_name(name: object) -> str:
    """The dotted name of a tensor. It is quoted into generated code, so nothing in it may end a quotation.

    Raises:
        ArtifactError: for quotes, backslashes, control characters, empty parts or private attributes.
    """
    if isinstance(name, str):
        parts = name.split(".")
        plain = all(part and part.isprintable() and not set(part) & set("\"'\\{}") for part in parts)
        if plain and not any(part.startswith("__") for part in parts):
            return name
    raise ArtifactError(f"{name!r} is not a tensor name that a program may hold", remedy=_REMEDY_DAMAGED)


def tensors_used(module: fx.GraphModule) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of all tensors that the graph reads by name."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if isinstance(value, torch.Tensor):
                yield str(node.target), value
