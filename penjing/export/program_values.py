"""Arguments and input/output trees of a stored program as JSON. Every kind of value is one table row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from penjing.errors import PenjingError


@dataclass(frozen=True)
class _Kind:
    """How values of one Python type are written as ``{tag: data}``."""

    tag: str
    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def _torch_constant(kind: type) -> Callable[[Any], Any]:
    def decode(name: Any) -> Any:
        value = getattr(torch, name) if isinstance(name, str) and name.isidentifier() else None
        if not isinstance(value, kind):
            raise ValueError(f"{name!r} is no {kind.__name__}")
        return value

    return decode


def _bare(value: object) -> str:
    return str(value).removeprefix("torch.")


_KINDS = (
    _Kind("dtype", torch.dtype, _bare, _torch_constant(torch.dtype)),
    _Kind("layout", torch.layout, _bare, _torch_constant(torch.layout)),
    _Kind("memory_format", torch.memory_format, _bare, _torch_constant(torch.memory_format)),
    _Kind("device", torch.device, str, torch.device),
    _Kind("complex", complex, lambda z: [repr(z.real), repr(z.imag)], lambda z: complex(*map(float, z))),
    _Kind("ellipsis", type(...), lambda _: None, lambda _: ...),
)
_DECODERS = {kind.tag: kind.decode for kind in _KINDS}


def encode_value(value: object, error: Callable[[object], PenjingError]) -> Any:
    """JSON of one argument; ``error(value)`` is raised for what has no JSON form."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, torch.SymInt)):
        return int(value)
    if isinstance(value, (float, torch.SymFloat)):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [encode_value(item, error) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode_value(item, error) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode_value(k, error), encode_value(v, error)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode_value(part, error) for part in (value.start, value.stop, value.step)]}
    for kind in _KINDS:
        if isinstance(value, kind.type):
            return {kind.tag: kind.encode(value)}
    raise error(value)


def decode_value(data: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The argument that `encode_value` wrote.

    Raises:
        ValueError, KeyError, TypeError: for anything `encode_value` does not write.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [decode_value(item, nodes) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError(f"{data!r} is no argument")
    ((tag, inner),) = data.items()
    match tag:
        case "node":
            return nodes[inner]
        case "float":
            return float(inner)
        case "tuple":
            return tuple(decode_value(item, nodes) for item in inner)
        case "dict":
            return {decode_value(k, nodes): decode_value(v, nodes) for k, v in inner}
        case "slice":
            return slice(*(decode_value(part, nodes) for part in inner))
        case _:
            return _DECODERS[tag](inner)


def encode_tree(spec: pytree.TreeSpec) -> Any:
    """JSON of the shape of nested inputs or outputs; ``"*"`` is a tensor.

    Only tuples, lists and dicts are kept. A class that the loading process may not have (a Hugging Face
    ``ModelOutput``, a named tuple) becomes the dict or tuple with the same contents.
    """
    if spec.is_leaf():
        return "*"
    inner = [encode_tree(child) for child in spec.children()]
    if spec.type is list:
        return inner
    keys = _keys(spec)
    if keys is not None:
        return {"dict": [[key, child] for key, child in zip(keys, inner, strict=True)]}
    return {"tuple": inner}


def _keys(spec: pytree.TreeSpec) -> list[str | int] | None:
    """Keys of a node that is a mapping of some kind: its context is, or contains, the list of its keys."""
    if spec.type is tuple:
        return None
    context = spec.context if isinstance(spec.context, (list, tuple)) else ()
    for names in (context, *context):
        fits = isinstance(names, list) and len(names) == spec.num_children
        if fits and all(isinstance(name, (str, int)) for name in names):
            return names if names or issubclass(spec.type, Mapping) else None
    return None


def decode_tree(data: Any) -> pytree.TreeSpec:
    """The tree that `encode_tree` wrote."""
    return pytree.tree_structure(_skeleton(data))


def _skeleton(data: Any) -> Any:
    if data == "*":
        return 0
    if isinstance(data, list):
        return [_skeleton(child) for child in data]
    ((tag, inner),) = data.items()
    if tag == "tuple":
        return tuple(_skeleton(child) for child in inner)
    if tag != "dict":
        raise ValueError(f"{tag!r} is no tree")
    return {key: _skeleton(child) for key, child in inner}
