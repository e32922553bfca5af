from __future__ import annotations

import numpy as np
import pytest

from penjing.recipe import Recipe
from penjing.recipe.run import run

NUM_CLASSES = 4


@pytest.fixture(scope="session")
def shapes_npz(tmp_path_factory):
    """Four classes of 8×8 images that a small network learns in seconds: a bright quadrant in noise."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "quadrants.npz"
    arrays = {}
    for split, count in (("train", 160), ("val", 60), ("test", 80)):
        labels = np.arange(count) % NUM_CLASSES
        images = rng.integers(0, 110, (count, 8, 8, 1))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 110
        arrays[f"x_{split}"] = images.astype(np.uint8)
        arrays[f"y_{split}"] = labels.astype(np.int64)
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def tiny_values(shapes_npz):
    """A whole recipe that runs in seconds."""
    return {
        "name": "tiny",
        "seed": 3,
        "data": {"spec": str(shapes_npz), "batch_size": 32, "eval_batch_size": 40, "calibration": 64},
        "model": {
            "spec": "penjing:vgg_small",
            "options": {"widths": [8, 12], "convs": [1, 1], "hidden": [64, 64]},
        },
        "train": {"epochs": 3, "lr": 0.05},
        "prune": {"budget": {"params": 0.6}},
        "recover": {"epochs": 2, "lr": 0.02},
        "export": {"formats": ["onnx"], "batch_sizes": [1, 3]},
        "measure": {"runs": 3, "batches": [1, 4], "max_train": 50},
        "max_drop": 1.0,
    }


@pytest.fixture(scope="session")
def tiny_recipe(tiny_values):
    return Recipe.parse(tiny_values)


@pytest.fixture(scope="session")
def finished(tiny_recipe, tmp_path_factory):
    """A run that nothing interrupted: its result and the events it emitted."""
    events = []
    result = run(tiny_recipe, tmp_path_factory.mktemp("runs") / "whole", listen=events.append)
    return result, events
