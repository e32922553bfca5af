"""What all tests share: one Keras backend a process, unhurried property tests, common fixtures."""

from __future__ import annotations

import importlib.util
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


Answers = dict[str, np.ndarray]


def _in_tensorflow(path: Path, feeds: Answers) -> Answers:
    from penjing.export.coexist import quiet_tf
    from penjing.export.saved_model import trace_onnx
    from penjing.export.tf_ops.backend import tf

    with quiet_tf():
        module, function = trace_onnx(path)
        results = function(*[tf.constant(array) for array in feeds.values()])
    assert module is not None  # it owns the variables
    return {name: value.numpy() for name, value in results.items()}


def _in_torch(path: Path, feeds: Answers) -> Answers:
    import torch

    from penjing.models.onnx_door import OnnxModel

    model = OnnxModel(path).eval()
    with torch.no_grad():
        given = model(*[torch.tensor(array) for array in feeds.values()])
    outputs = given if isinstance(given, tuple) else (given,)
    return {name: value.numpy() for name, value in zip(model.output_names, outputs, strict=True)}


TENSORFLOW = pytest.param(
    _in_tensorflow,
    id="tensorflow",
    marks=[
        pytest.mark.tf,
        pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow"),
    ],
)


@pytest.fixture(params=[TENSORFLOW, pytest.param(_in_torch, id="torch")])
def same_answer(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Assert that an ONNX model gives in TensorFlow and in torch what it gives in ONNX Runtime."""
    return _checker(request.param, tmp_path)


@pytest.fixture
def same_in_torch(tmp_path: Path) -> Callable[..., None]:
    """Assert that an ONNX model gives in torch what it gives in ONNX Runtime."""
    return _checker(_in_torch, tmp_path)


def _checker(run: Callable[[Path, Answers], Answers], folder: Path) -> Callable[..., None]:
    from penjing.export.onnx import OnnxRunner

    def check(model: onnx.ModelProto, feeds: Answers, rtol: float = 1e-5) -> None:
        path = folder / "model.onnx"
        onnx.save(model, str(path))
        expected = OnnxRunner(path, threads=1).run(feeds)
        found = run(path, feeds)
        for output, wanted in zip(model.graph.output, expected, strict=True):
            got = found[output.name]
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            scale = max(float(np.abs(wanted).max()), 1.0) if wanted.size and wanted.dtype.kind == "f" else 1.0
            np.testing.assert_allclose(
                got.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=rtol * scale
            )

    return check
