"""Integers that a module holds, by name: attributes of its own, and entries of a configuration that it keeps
and may share with others (a dict, a dataclass, a namespace), as ``"config.width"``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from torch import nn

_PLAIN = (int, float, str, list, tuple, dict, type(None))


def kept_integers(module: nn.Module) -> Iterator[tuple[int, str, int]]:
    """Integers above 1 in the configurations a module keeps: which object, the dotted name, and the value."""
    for name, holder in vars(module).items():
        if not name.startswith("_") and _is_configuration(holder):
            for key, value in _entries(holder).items():
                if type(value) is int and value > 1 and isinstance(key, str) and "." not in key:
                    yield id(holder), f"{name}.{key}", value


def has(module: nn.Module, name: str) -> bool:
    """Whether a module holds a number of this name."""
    first, _, key = name.partition(".")
    return hasattr(module, first) and (not key or key in _entries(getattr(module, first)))


def get(module: nn.Module, name: str) -> Any:
    """The number of this name."""
    first, _, key = name.partition(".")
    return _entries(getattr(module, first))[key] if key else getattr(module, first)


def put(module: nn.Module, name: str, value: Any) -> None:
    """Give the number of this name a value; it is another one for all who share the configuration."""
    first, _, key = name.partition(".")
    if not key:
        setattr(module, first, value)
    else:
        _entries(getattr(module, first))[key] = value


def _is_configuration(value: object) -> bool:
    """A dict, a dataclass, or an object that holds nothing but plain values."""
    if isinstance(value, dict | type | nn.Module) or not hasattr(value, "__dict__"):
        return isinstance(value, dict)
    return is_dataclass(value) or all(isinstance(entry, _PLAIN) for entry in vars(value).values())


def _entries(holder: Any) -> dict[str, Any]:
    """What a configuration says, to write into as well: also a frozen dataclass."""
    entries: dict[str, Any] = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
    return entries
