"""What a forward changes besides its outputs: what it keeps on its modules, and the inputs themselves.

Anchors of the last size and statistics to undo a scaling are kept between calls. A forward that is traced,
or only tried, keeps the tracer's stand-ins there, or answers for inputs that nobody gave; the next real call
would read them. And ``x.sub_(mean).div_(std)`` changes the caller's data, which others are to see unchanged.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

_EVERY = frozenset(vars(nn.Module()))  # parameters, hooks, mode: looked after by those who change them
_ABSENT = object()
_HOLDERS = (dict, list, OrderedDict, defaultdict)


def own_copies(inputs: Any) -> Any:
    """Inputs that a forward may write into."""
    return pytree.tree_map_only(Tensor, Tensor.clone, inputs)


@contextmanager
def forgotten(model: nn.Module) -> Iterator[None]:
    """Every module's own attributes are afterwards what they were, and so are the dicts and lists in them."""
    before = [(module, own, _contents(own)) for module in model.modules() for own in [_own(module)]]
    try:
        yield
    finally:
        for module, own, contents in before:
            for name, value in _own(module).items():
                if own.get(name, _ABSENT) is not value:
                    module.__dict__.pop(name)
            module.__dict__.update(own)
            for name, held in contents.items():
                _refill(own[name], held)


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _EVERY}


def _contents(own: dict[str, Any]) -> dict[str, Any]:
    return {name: value.copy() for name, value in own.items() if type(value) in _HOLDERS}


def _refill(value: Any, held: Any) -> None:
    """Give a dict or list its entries back, if they are others by now."""
    if isinstance(value, dict):
        if value.keys() != held.keys() or any(value[key] is not entry for key, entry in held.items()):
            value.clear()
            value.update(held)
    elif len(value) != len(held) or any(a is not b for a, b in zip(value, held, strict=True)):
        value[:] = held
