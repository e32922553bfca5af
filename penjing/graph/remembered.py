"""What a forward changes besides its outputs: what it keeps on its modules, and the inputs themselves.

Anchors of the last size and statistics to undo a scaling are kept between calls. A forward that is traced,
or only tried, keeps the tracer's stand-ins there, or answers for inputs that nobody gave; the next real call
would read them. And ``x.sub_(mean).div_(std)`` changes the caller's data, which others are to see unchanged.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_EVERY = frozenset(vars(nn.Module()))  # parameters, hooks, mode: looked after by those who change them
_ABSENT = object()
_HOLDERS = (dict, list, OrderedDict, defaultdict)


def own_copies(inputs: Any) -> Any:
    """Inputs that a forward may write into."""
    return pytree.tree_map_only(Tensor, Tensor.clone, inputs)


@contextmanager
def forgotten(model: nn.Module) -> Iterator[Callable[[], set[str]]]:
    """Every module's own attributes are afterwards what they were, and so are the dicts, lists and tensors in
    them.

    Yields:
        Names the attributes that hold other tensors by now, or other numbers in them.
    """
    before = [
        (path, module, own, _contents(own), _marks(own), _values(own))
        for path, module in model.named_modules()
        for own in [_own(module)]
    ]
    buffers = [(module, dict(module._buffers.items())) for module in model.modules()]

    def changed() -> set[str]:
        return {
            f"{path}.{name}".lstrip(".")
            for path, module, *_, marks, _ in before
            for name, mark in _marks(_own(module)).items()
            if mark != marks.get(name, [])
        }

    try:
        yield changed
    finally:
        for _, module, own, contents, _, values in before:
            for name, value in _own(module).items():
                if own.get(name, _ABSENT) is not value:
                    module.__dict__.pop(name)
            module.__dict__.update(own)
            for name, held in contents.items():
                _refill(own[name], held)
            for tensor, version, numbers in values:
                if tensor._version != version:
                    with torch.no_grad():
                        tensor.copy_(numbers)
        for module, held_before in buffers:
            _empty_buffers(module, held_before)


def _empty_buffers(module: nn.Module, before: Mapping[str, Tensor | None]) -> None:
    """Take out what was put into empty buffers, and buffers that are new: tables made at the first call."""
    for name, buffer in dict(module._buffers.items()).items():
        if name not in before:
            delattr(module, name)
        elif before[name] is None and buffer is not None:
            module._buffers[name] = None


@contextmanager
def put_back(model: nn.Module) -> Iterator[set[str]]:
    """All that a forward may write is afterwards what it was: buffers, and what is `forgotten`.

    Yields:
        Names of the buffers that were written, complete at the end.
    """
    buffers = [
        (f"{prefix}.{name}".lstrip("."), module, name, buffer, buffer.detach().clone())
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    versions = [_version(buffer) for *_, buffer, _ in buffers]
    written: set[str] = set()
    try:
        with forgotten(model):
            yield written
    finally:
        for (path, module, name, buffer, value), version in zip(buffers, versions, strict=True):
            is_held = getattr(module, name, None) is buffer
            if is_held and _version(buffer) == version and _same(buffer, value):
                continue
            written.add(path)
            if not is_held:
                setattr(module, name, buffer)
            with torch.no_grad():
                buffer.copy_(value)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written; tensors made in inference mode do not count it."""
    return -1 if tensor.is_inference() else tensor._version


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether the numbers are equal: batch norms write their statistics without counting it."""
    if one.is_meta or one.layout is not torch.strided or not one.is_floating_point():
        return True
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _EVERY}


def _contents(own: dict[str, Any]) -> dict[str, Any]:
    return {name: value.copy() for name, value in own.items() if type(value) in _HOLDERS}


def _tensors(value: Any) -> list[Tensor]:
    """Tensors of an attribute that a forward could write into: no parameters, which recurrent layers list,
    and none that were made in inference mode, which cannot be written outside of it."""
    holds = isinstance(value, Tensor) or type(value) in (*_HOLDERS, tuple)
    found = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)] if holds else []
    return [one for one in found if not isinstance(one, nn.Parameter) and not one.is_inference()]


def _marks(own: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Which tensors each attribute holds, and how often they were written."""
    return {name: [(id(t), t._version) for t in _tensors(value)] for name, value in own.items()}


def _values(own: dict[str, Any]) -> list[tuple[Tensor, int, Tensor]]:
    """Each tensor, how often it was written, and its numbers."""
    found = [tensor for value in own.values() for tensor in _tensors(value)]
    return [(tensor, tensor._version, tensor.detach().clone()) for tensor in found]


def _refill(value: Any, held: Any) -> None:
    """Give a dict or list its entries back, if they are others by now."""
    if isinstance(value, dict):
        if value.keys() != held.keys() or any(value[key] is not entry for key, entry in held.items()):
            value.clear()
            value.update(held)
    elif len(value) != len(held) or any(a is not b for a, b in zip(value, held, strict=True)):
        value[:] = held
