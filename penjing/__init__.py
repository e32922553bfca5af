"""Penjing: takes a trained network and gives back a small, fast one, finished.

The public names are imported when they are first used, so that ``import penjing`` costs nothing. Four of them
are also the packages they live in: ``penjing.prune(model, …)`` prunes, ``penjing.prune.Plan`` is the plan.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import Signature, signature
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penjing.artifact import load as load
    from penjing.artifact import save_artifact as save_artifact
    from penjing.data import DataBundle as DataBundle
    from penjing.data import Loader as Loader
    from penjing.data import open_data as open_data
    from penjing.errors import PenjingError as PenjingError
    from penjing.events import Event as Event
    from penjing.export.export import export as export
    from penjing.export.verify import verify as verify
    from penjing.factor.api import FactorizeResult as FactorizeResult
    from penjing.factor.api import factorize as factorize
    from penjing.graph import couple as couple
    from penjing.graph import trace as trace
    from penjing.measure.inspect import inspect as inspect
    from penjing.models import build as build
    from penjing.models.spec import load_model as load_model
    from penjing.prune.api import prune as prune
    from penjing.prune.apply import apply as apply
    from penjing.prune.apply import apply_ as apply_
    from penjing.prune.budget import Budget as Budget
    from penjing.prune.gradual import prune_gradually as prune_gradually
    from penjing.prune.plan import Plan as Plan
    from penjing.prune.reconstruct import ReconstructConfig as ReconstructConfig
    from penjing.prune.reconstruct import reconstruct as reconstruct
    from penjing.prune.result import PruneResult as PruneResult
    from penjing.prune.sparsity import sparsify as sparsify
    from penjing.quantize.config import QuantizeConfig as QuantizeConfig
    from penjing.quantize.ptq import quantize as quantize
    from penjing.recipe.compress import compress as compress
    from penjing.recipe.result import RunResult as RunResult
    from penjing.recipe.run import run as run
    from penjing.recipe.schema import Recipe as Recipe
    from penjing.recover.api import recover as recover
    from penjing.recover.api import train as train
    from penjing.recover.config import RecoverConfig as RecoverConfig
    from penjing.recover.result import RecoverResult as RecoverResult

_HOMES = {
    "penjing.artifact": ("load", "save_artifact"),
    "penjing.data": ("DataBundle", "Loader", "open_data"),
    "penjing.errors": ("PenjingError",),
    "penjing.events": ("Event",),
    "penjing.export": ("export", "verify"),
    "penjing.factor": ("FactorizeResult", "factorize"),
    "penjing.graph": ("couple", "trace"),
    "penjing.measure": ("inspect",),
    "penjing.models": ("build",),
    "penjing.models.spec": ("load_model",),
    "penjing.prune": ("Budget", "Plan", "PruneResult", "apply", "apply_", "prune", "sparsify"),
    "penjing.prune.gradual": ("prune_gradually",),
    "penjing.prune.reconstruct": ("ReconstructConfig", "reconstruct"),
    "penjing.quantize": ("QuantizeConfig", "quantize"),
    "penjing.recipe": ("Recipe", "RunResult", "compress", "run"),
    "penjing.recover": ("RecoverConfig", "RecoverResult", "recover", "train"),
}
_VERBS = ("export", "prune", "quantize", "recover")
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "DataBundle",
    "Event",
    "FactorizeResult",
    "Loader",
    "PenjingError",
    "Plan",
    "PruneResult",
    "QuantizeConfig",
    "Recipe",
    "ReconstructConfig",
    "RecoverConfig",
    "RecoverResult",
    "RunResult",
    "apply",
    "apply_",
    "build",
    "compress",
    "couple",
    "export",
    "factorize",
    "inspect",
    "load",
    "load_model",
    "open_data",
    "prune",
    "prune_gradually",
    "quantize",
    "reconstruct",
    "recover",
    "run",
    "save_artifact",
    "sparsify",
    "trace",
    "train",
    "verify",
]


class _Verb(ModuleType):
    """A package that is called like the function of its name: `penjing.prune` holds and does pruning."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    @property
    def _function(self) -> Any:
        return self.__dict__[self.__name__.rpartition(".")[2]]

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]  # what `help` and `?` show
        """The function's."""
        doc: str | None = self._function.__doc__
        return doc

    @property
    def __signature__(self) -> Signature:
        return signature(self._function)


class _Penjing(ModuleType):
    """This package: it makes its verbs' packages a `_Verb` when they are first imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Penjing


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("penjing")
        except PackageNotFoundError:  # run from a source folder that was never installed
            return "0+unknown"
    if name in _VERBS:
        return import_module(f"penjing.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'penjing' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
