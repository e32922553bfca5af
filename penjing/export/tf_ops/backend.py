"""TensorFlow, imported once and kept quiet. Only modules of this package import it at their top."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from penjing.export.coexist import make_peace
from penjing.log import silenced

make_peace()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf

__all__ = ["quiet_tf", "tf"]


@contextlib.contextmanager
def quiet_tf() -> Iterator[None]:
    """No log lines and no deprecation warnings from TensorFlow inside; levels are restored."""
    with silenced("tensorflow", "absl", level=logging.ERROR):
        yield
