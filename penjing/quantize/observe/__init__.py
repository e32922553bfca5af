"""Observers find the range that an activation tensor is quantized over; one file each, found by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from penjing.quantize.observe.base import Observer

__all__ = ["Observer", "make_observer", "observers"]


@cache
def observers() -> dict[str, type[Observer]]:
    """All observers by name; a new one is a new module in this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    base: type[Any] = Observer
    return {cls.name: cls for cls in _subclasses(base) if "name" in vars(cls)}


def make_observer(name: str) -> Observer:
    """A fresh observer.

    Raises:
        KeyError: if there is none of this name.
    """
    return observers()[name]()


def _subclasses(base: type[Any]) -> list[type[Any]]:
    found: list[type[Any]] = []
    for cls in base.__subclasses__():
        found += [cls, *_subclasses(cls)]
    return found
