"""TensorFlow, imported once and kept quiet. Only modules of this package import it at their top."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from penjing.export.coexist import make_peace

make_peace()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf

__all__ = ["quiet_tf", "tf"]


@contextlib.contextmanager
def quiet_tf() -> Iterator[None]:
    """No log lines and no deprecation warnings from TensorFlow inside; levels are restored."""
    loggers = [logging.getLogger("tensorflow"), logging.getLogger("absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
