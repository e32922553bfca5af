"""A Keras model file goes the same way as any other: through the command line, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Keras is looked for, not imported: the test process stays free of it.
pytestmark = [
    pytest.mark.keras,
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs Keras 3 (extra `keras`)"),
]

MAKE = """
import sys, keras, numpy as np
from keras import layers
keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((8, 8, 1)),
    layers.Conv2D(8, 3, padding="same", use_bias=False),
    layers.BatchNormalization(momentum=0.5), layers.ReLU(),
    layers.MaxPooling2D(), layers.Flatten(), layers.Dense(32, activation="relu"), layers.Dense(4),
])
data = np.load(sys.argv[1])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.01), loss)
model.fit(data["x_train"] / 255.0, data["y_train"], batch_size=32, epochs=4, verbose=0)
model.save(sys.argv[2])
"""


def test_keras_file_is_compressed(tmp_path: Path) -> None:
    data, model, out = tmp_path / "quadrants.npz", tmp_path / "model.keras", tmp_path / "small"
    np.savez(data, allow_pickle=False, **quadrants())
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", MAKE, str(data), str(model)], check=True, env=environment, timeout=300
    )
    command = [
        sys.executable,
        "-m",
        "penjing",
        "compress",
        str(model),
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    command += [
        "--budget",
        "params=0.5",
        "--max-drop",
        "10",
        "--epochs",
        "10",
        "--formats",
        "onnx",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "cpu_feature_guard" not in done.stderr  # Keras imports TensorFlow, which prints of itself
    rows = {row["key"]: row for row in json.loads(done.stdout)["metrics"]["rows"]}
    assert rows["recovered"]["num_params"] <= 0.5 * rows["dense"]["num_params"]
    assert rows["dense"]["accuracy"]["test"]["value"] > 0.9
    assert rows["int8"]["accuracy"]["test"]["value"] > 0.8
    assert (out / "model.int8.onnx").is_file()
    count = f"import keras; print(keras.saving.load_model({str(out / 'model.keras')!r}).count_params())"
    told = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, env=environment)
    moving = 2 * 8  # at most: Keras counts moving statistics, too
    assert 0 <= int(told.stdout) - rows["recovered"]["num_params"] <= moving, told.stderr


def quadrants() -> dict[str, np.ndarray]:
    """Four classes of 8×8 images: which quadrant is bright."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 160), ("val", 60), ("test", 80)):
        labels = np.arange(count, dtype=np.int64) % 4
        images = rng.integers(0, 110, (count, 8, 8, 1))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 110
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images.astype(np.uint8), labels
    return arrays
