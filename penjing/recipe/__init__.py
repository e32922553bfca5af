"""The recipe, the run that carries it out, and `compress` around a network of one's own."""

from __future__ import annotations

from penjing.recipe.compress import compress
from penjing.recipe.result import RunResult
from penjing.recipe.run import run
from penjing.recipe.schema import (
    DataConfig,
    ExportConfig,
    MeasureConfig,
    ModelConfig,
    PruneConfig,
    Recipe,
)

__all__ = [
    "DataConfig",
    "ExportConfig",
    "MeasureConfig",
    "ModelConfig",
    "PruneConfig",
    "Recipe",
    "RunResult",
    "compress",
    "run",
]
