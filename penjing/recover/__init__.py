"""Training and recovery: one loop, distillation losses, augmentation."""

from __future__ import annotations

from penjing.recover.api import recover, train
from penjing.recover.config import LossTerm, RecoverConfig
from penjing.recover.evaluate import evaluate
from penjing.recover.features import FeatureSpec, feature_specs
from penjing.recover.result import RecoverResult, StopReason

__all__ = [
    "FeatureSpec",
    "LossTerm",
    "RecoverConfig",
    "RecoverResult",
    "StopReason",
    "evaluate",
    "feature_specs",
    "recover",
    "train",
]
