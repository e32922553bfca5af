"""What TensorFlow prints of itself when it starts is not the user's business."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.parametrize("module", ["penjing.export.tf_ops.backend", "penjing.export.litert_int8.graph"])
def test_tensorflow_starts_without_a_line(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
