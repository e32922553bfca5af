"""A module tree that only holds named tensors: what a graph reads its parameters from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule


@dataclass(frozen=True, eq=False)
class Held:
    """One named tensor of a module tree; ``persistent`` says whether it is in the state_dict."""

    name: str
    tensor: Tensor
    persistent: bool = True


def graph_module(tensors: Sequence[Held], graph: fx.Graph, name: str) -> fx.GraphModule:
    """A graph with its tensors, those too that it never reads; its Python code is written when first called.

    Planning never calls it, and writing the code takes as long as all of planning.
    """
    module = _LazyGraphModule(nn.Module(), fx.Graph(), name)  # an empty one: fx copies attribute by attribute
    attach_all(module, tensors)
    module.graph = graph
    return module


def held_tensors(model: nn.Module) -> Iterator[Held]:
    """Every parameter and buffer of ``model`` under every one of its names."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = prefix + "." if prefix else ""
        for name, param in module._parameters.items():
            if param is not None:
                yield Held(dot + name, param)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield Held(dot + name, buffer, name not in module._non_persistent_buffers_set)


def attach(root: nn.Module, held: Held) -> None:
    """Register a tensor under its dotted name, making empty modules on the way."""
    attach_all(root, (held,))


def attach_all(root: nn.Module, tensors: Iterable[Held]) -> None:
    """Register tensors under their dotted names, making empty modules on the way."""
    modules = {"": root}
    for held in tensors:
        path, _, name = held.name.rpartition(".")
        module = modules[path] if path in modules else _module_at(modules, path)
        if isinstance(held.tensor, nn.Parameter):
            module.register_parameter(name, held.tensor)
        else:
            module.register_buffer(name, held.tensor, persistent=held.persistent)


def _module_at(modules: dict[str, nn.Module], path: str) -> nn.Module:
    """The module of a dotted path, made where it is missing; ``modules`` remembers those met before."""
    if path not in modules:
        above, _, part = path.rpartition(".")
        parent = _module_at(modules, above)
        found = parent._modules.get(part)
        if found is None:
            found = nn.Module()
            parent.add_module(part, found)
        modules[path] = found
    return modules[path]


def build_tree(tensors: Iterable[Held], *, copy: bool = False) -> nn.Module:
    """A module with these tensors and nothing else; a tensor held under two names stays one."""
    root = nn.Module()
    copies: dict[int, Tensor] = {}
    named: list[Held] = []
    for held in tensors:
        tensor = held.tensor
        if copy:
            if id(tensor) not in copies:
                copies[id(tensor)] = _copy(tensor)
            tensor = copies[id(tensor)]
        named.append(Held(held.name, tensor, held.persistent))
    attach_all(root, named)
    return root


def _copy(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        data = tensor.detach().clone()
    return (
        nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    )
