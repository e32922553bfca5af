"""What all tests share: one Keras backend a process, unhurried property tests, common fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from torch import nn

# Keras reads its backend once, when it is first imported: in the test processes that is torch.
os.environ.setdefault("KERAS_BACKEND", "torch")

# Property tests are not timed: the machine may be busy. The suite draws the same examples every time, so that
# it speaks of the change at hand; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture
def small_net() -> nn.Module:
    """A fresh VGG-like net for 16×16 images."""
    from export_models import vgg_like

    return vgg_like()


@pytest.fixture
def same_in_tensorflow(tmp_path: Path) -> Callable[..., None]:
    """Assert that a model gives in TensorFlow what it gives in ONNX Runtime."""
    from penjing.export.onnx import OnnxRunner
    from penjing.export.saved_model import trace_onnx
    from penjing.export.tf_ops.backend import quiet_tf, tf

    def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray], rtol: float = 1e-5) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(model, str(path))
        expected = OnnxRunner(path, threads=1).run(feeds)
        with quiet_tf():
            module, function = trace_onnx(path)
            results = function(*[tf.constant(array) for array in feeds.values()])
        for output, wanted in zip(model.graph.output, expected, strict=True):
            got = results[output.name].numpy()
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            scale = max(float(np.abs(wanted).max()), 1.0) if wanted.size and wanted.dtype.kind == "f" else 1.0
            np.testing.assert_allclose(
                got.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=rtol * scale
            )
        assert module is not None

    return check
