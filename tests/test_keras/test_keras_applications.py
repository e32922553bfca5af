"""Keras networks pruned, trained, saved, read on TensorFlow and exported: the same on every side."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import penjing as pj
from penjing.models import keras_door as door
from penjing.models.spec import load_model

if find_spec("keras") is None:  # importing it here would choose its backend
    pytest.skip("Keras is not installed", allow_module_level=True)
pytestmark = [
    pytest.mark.keras,
    pytest.mark.tf,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow (pip install penjing[tf])"),
]

SIDE = 64


def handwritten(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 3)),
            layers.Conv2D(8, 3, strides=4, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.SeparableConv2D(12, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.1),
            layers.GlobalAveragePooling2D(),
            layers.Dense(16, activation="gelu"),
            layers.Dense(5, activation="softmax"),
        ]
    )


def built(name: str, keras: Any) -> Any:
    if name == "handwritten":
        return handwritten(keras)
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(SIDE, SIDE, 3), classes=10)


ON_TENSORFLOW = """
import sys, keras, numpy
from safetensors.numpy import load_file, save_file
assert keras.backend.backend() == "tensorflow"
model = keras.saving.load_model(sys.argv[1], compile=False)
x = load_file(sys.argv[2])["x"]
save_file({"y": numpy.asarray(model(x, training=False))}, sys.argv[3])
"""


@pytest.mark.parametrize("name", ["handwritten", "MobileNetV2", "ResNet50", "EfficientNetV2B0"])
def test_a_keras_network_is_the_same_on_every_side(name: str, tmp_path: Path) -> None:
    keras = door.import_keras()
    keras.utils.set_random_seed(0)
    built(name, keras).save(tmp_path / "given.keras")
    loaded = load_model(tmp_path / "given.keras")
    made = pj.prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert made.in_place, made.reason
    assert made.after["params"] < 0.6 * made.before["params"]
    model = made.model
    assert isinstance(model, door.KerasModule)

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = model.train()(loaded.example_inputs).square().sum()
    loss.backward()
    optimizer.step()
    model.eval()

    door.save_keras(model, tmp_path / "small.keras")
    x = torch.randn(3, SIDE, SIDE, 3)
    save_file({"x": x}, tmp_path / "x.safetensors")
    paths = [str(tmp_path / file) for file in ("small.keras", "x.safetensors", "y.safetensors")]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", ON_TENSORFLOW, *paths], check=True, env=environment)
    with torch.no_grad():
        expected = model(x).numpy()
    scale = float(np.abs(expected).max())
    on_tensorflow = load_file(paths[2])["y"].numpy()
    assert float(np.abs(on_tensorflow - expected).max()) < 1e-5 * scale

    files = pj.export(
        model,
        tmp_path / "out",
        ("onnx", "saved_model"),
        example_inputs=x,
        batch_sizes=(1, 3),
        tolerance=1e-5,
    )
    assert files.ok
