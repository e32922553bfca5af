"""Losses, one file each; a new file with a ``@loss("name")`` class is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from penjing.recover.losses.base import Answers, FeatureLoss, LogitLoss, Loss, loss, loss_names, make_loss

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Answers", "FeatureLoss", "LogitLoss", "Loss", "loss", "loss_names", "make_loss"]
