"""TensorFlow and PyTorch in one process.

TensorFlow and Triton each carry their own LLVM. Triton's library crashes the process when it is loaded after
TensorFlow (``torch.export`` loads it when it is installed); loaded before, both work.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys


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
