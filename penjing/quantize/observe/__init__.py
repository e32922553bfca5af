"""Observers find the range that an activation tensor is quantized over; one file each, found by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from penjing.quantize.observe.base import Extremes, HistogramObserver, Observer

__all__ = ["Extremes", "HistogramObserver", "Observer", "make_observer", "observers"]


@cache
def _read_own() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def observers() -> dict[str, type[Observer]]:
    """All observers by name: each module of this package is one, and so is every subclass with a ``name``."""
    _read_own()
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
