"""Penjing: takes a trained network and gives back a small, fast one, finished.

The public names are imported when they are first used, so that ``import penjing`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penjing.artifact import load, save_artifact
    from penjing.data import DataBundle, Loader, open_data
    from penjing.errors import PenjingError
    from penjing.events import Event
    from penjing.export import export, verify
    from penjing.graph import couple, trace
    from penjing.measure import inspect
    from penjing.models import build
    from penjing.models.spec import load_model
    from penjing.prune import Budget, Plan, PruneResult, apply, apply_, prune
    from penjing.prune.reconstruct import ReconstructConfig, reconstruct
    from penjing.quantize import QuantizeConfig, quantize
    from penjing.recipe import Recipe, RunResult, compress, run
    from penjing.recover import RecoverConfig, RecoverResult, recover, train

_HOMES = {
    "penjing.artifact": ("load", "save_artifact"),
    "penjing.data": ("DataBundle", "Loader", "open_data"),
    "penjing.errors": ("PenjingError",),
    "penjing.events": ("Event",),
    "penjing.export": ("export", "verify"),
    "penjing.graph": ("couple", "trace"),
    "penjing.measure": ("inspect",),
    "penjing.models": ("build",),
    "penjing.models.spec": ("load_model",),
    "penjing.prune": ("Budget", "Plan", "PruneResult", "apply", "apply_", "prune"),
    "penjing.prune.reconstruct": ("ReconstructConfig", "reconstruct"),
    "penjing.quantize": ("QuantizeConfig", "quantize"),
    "penjing.recipe": ("Recipe", "RunResult", "compress", "run"),
    "penjing.recover": ("RecoverConfig", "RecoverResult", "recover", "train"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "DataBundle",
    "Event",
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
    "inspect",
    "load",
    "load_model",
    "open_data",
    "prune",
    "quantize",
    "reconstruct",
    "recover",
    "run",
    "save_artifact",
    "trace",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("penjing")
        except PackageNotFoundError:  # run from a source folder that was never installed
            return "0+unknown"
    if name not in _HOME:
        raise AttributeError(f"module 'penjing' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
