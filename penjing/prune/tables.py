"""Tensors that modules keep as plain attributes, and that nothing but their ``__init__`` sets.

They are no parameters or buffers, so that no state holds them, but they are as much the network's as those: a
table of positions, added to what flows past, shrinks with it. What a forward makes anew (for a longer input)
it makes by its own numbers, so that such a table stays.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from penjing.graph import Graph


def plain_tables(model: nn.Module, graph: Graph) -> Iterator[tuple[nn.Module, str, str]]:
    """Modules, their attributes that hold such tensors, and what the graph calls them.

    Args:
        model: The network that was traced, or another of its class whose tables hold the same.
        graph: Its traced graph.
    """
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    lifted = {_memory(tensor): name for name, tensor in graph.buffers.items() if name not in named}
    for module in model.modules() if lifted else ():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                name = lifted.get(_memory(value))
                if name is not None and _is_set_once(type(module), attribute):
                    yield module, attribute, name


def set_tables(model: nn.Module, sliced: nn.Module) -> None:
    """Give a network the tensors that its sliced copy keeps as plain attributes, where they are others."""
    copies = dict(sliced.named_modules())
    for path, module in model.named_modules():
        for attribute, kept in vars(copies[path]).items():
            held = vars(module).get(attribute)
            if isinstance(held, Tensor) and isinstance(kept, Tensor) and not torch.equal(held, kept):
                setattr(module, attribute, kept)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _is_set_once(kind: type[nn.Module], attribute: str) -> bool:
    """Whether no method of the class but ``__init__`` sets the attribute, as far as its code says."""
    functions = (
        value.fget if isinstance(value, property) else value
        for base in kind.__mro__
        if not base.__module__.startswith("torch.")
        for name, value in vars(base).items()
        if name != "__init__"
    )
    return not any(
        _sets(function.__code__, attribute) for function in functions if isinstance(function, FunctionType)
    )


def _sets(code: CodeType, attribute: str) -> bool:
    stores = any(
        step.opname == "STORE_ATTR" and step.argval == attribute for step in dis.get_instructions(code)
    )
    return stores or any(_sets(inner, attribute) for inner in code.co_consts if isinstance(inner, CodeType))
