"""What a network computes from its weights alone, worked out once: files have no op for some of it (a
determinant, an orthogonal parametrization's exponential), and need none."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

_HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def fold_weights(program: torch.export.ExportedProgram) -> int:
    """Replace tensors that are computed from weights alone by buffers that hold them; gives how many.

    Random numbers and what a forward writes into stay as they are.
    """
    known = _known(program)
    graph = program.graph
    specs = program.graph_signature.input_specs
    at = next(i for i, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT)
    first_input = graph.find_nodes(op="placeholder")[at]
    count = 0
    for node, value in known.items():
        used = [user for user in node.users if user not in known]
        if node.op == "placeholder" or not used or not isinstance(value, Tensor):
            continue
        name = f"folded_{count}"
        with graph.inserting_before(first_input):
            held = graph.placeholder(f"b_{name}")
        held.meta = dict(node.meta)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(held.name), name, persistent=True)
        specs.insert(at + count, spec)
        program.state_dict[name] = value.contiguous()
        node.replace_all_uses_with(held, delete_user_cb=lambda user: user not in known)
        count += 1
    for node in reversed(known):  # with the tracer's assertions, which dead code keeps alive
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    program.graph_module.recompile()
    return count


def _known(program: torch.export.ExportedProgram) -> dict[fx.Node, Any]:
    """The values of the nodes that read weights alone; not of those in memory that some op writes into."""
    signature = program.graph_signature
    written = {*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()}
    known: dict[fx.Node, Any] = {
        node: program.state_dict.get(spec.target, program.constants.get(spec.target))
        for node, spec in zip(program.graph.find_nodes(op="placeholder"), signature.input_specs, strict=True)
        if spec.kind in _HELD and spec.target not in written
    }
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_pure(node) and all(n in known for n in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    changed = {
        _memory(known[read])
        for node in program.graph.nodes
        if node.op == "call_function" and not _is_pure(node)
        for read in node.all_input_nodes
        if isinstance(known.get(read), Tensor)
    }
    kept: dict[fx.Node, Any] = {}
    for node, value in known.items():
        if _memory(value) not in changed and all(n in kept for n in node.all_input_nodes):
            kept[node] = value
    return kept


def _memory(value: Any) -> int:
    """Where a tensor lies, which its views share."""
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else -1


def _is_pure(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )
