"""Sparse training: regularizers that push whole slots of coupled groups to zero before they are removed.

One file each; a new file with a ``@regularizer("name")`` class is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

from penjing.recover.regularize.base import Regularizer, make_regularizer, regularizer, regularizer_names

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Regularizer", "make_regularizer", "regularizer", "regularizer_names"]
