"""TensorFlow and PyTorch in one process, in peace and quiet.

TensorFlow and Triton each carry their own LLVM. Triton's library crashes the process when it is loaded after
TensorFlow (``torch.export`` loads it when it is installed); loaded before, both work.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from penjing.log import silenced, without_lines


def make_peace() -> None:
    """Call before the first ``torch.export`` and before importing TensorFlow.

    Where TensorFlow came first, Triton is declared missing for this process: torch then does without it,
    which changes nothing but GPU kernels compiled by `torch.compile`.
    """
    if "triton" in sys.modules:
        return
    if "tensorflow" in sys.modules:
        sys.modules["triton"] = None  # type: ignore[assignment]
    elif (
        importlib.util.find_spec("tensorflow") is not None and importlib.util.find_spec("triton") is not None
    ):
        importlib.import_module("triton")


@contextmanager
def entering_tensorflow() -> Iterator[None]:
    """For ``import tensorflow``: in peace with PyTorch, and without what it prints of itself.

    Its first lines (oneDNN, in the log's information level) come before its log is set up, whatever
    ``TF_CPP_MIN_LOG_LEVEL`` says. Everything else that is printed meanwhile comes through.
    """
    make_peace()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings(), without_lines("WARNING: All log messages before absl::", "I0000 "):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet_tf() -> Iterator[None]:
    """No log lines and no deprecation warnings from TensorFlow inside; levels are restored."""
    with silenced("tensorflow", "absl", level=logging.ERROR):
        yield
