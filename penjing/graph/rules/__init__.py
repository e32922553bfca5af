"""One table of axis rules per op family; every module here is discovered and registers its rules."""

import importlib
import pkgutil

from penjing.graph.rules.table import RULES, Axes, Notebook, Op, find_rule, has_free, rule

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["RULES", "Axes", "Notebook", "Op", "find_rule", "has_free", "rule"]
