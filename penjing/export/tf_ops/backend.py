"""TensorFlow, imported once and kept quiet. Only modules of this package import it at their top."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from penjing.export.coexist import make_peace
from penjing.log import silenced

make_peace()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf

__all__ = ["quiet_tf", "tf", "without_lines"]


@contextlib.contextmanager
def quiet_tf() -> Iterator[None]:
    """No log lines and no deprecation warnings from TensorFlow inside; levels are restored."""
    with silenced("tensorflow", "absl", level=logging.ERROR):
        yield


@contextlib.contextmanager
def without_lines(prefix: str) -> Iterator[None]:
    """Leave out the lines with this beginning that native code writes to standard error inside.

    TensorFlow prints some outside its log. The other lines come through when the block ends.
    """
    sys.stderr.flush()
    usual = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(usual, 2)
            os.close(usual)
            aside.seek(0)
            for line in aside:
                if not line.startswith(prefix.encode()):
                    os.write(2, line)
