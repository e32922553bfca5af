from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.errors import RecipeError
from penjing.recipe import Recipe
from penjing.recipe.stages import stages_of
from penjing.recipe.workspace import Workspace


def test_the_first_round_prunes_what_sparse_training_left(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = (rng.integers(0, 110, (96, 8, 8, 1)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "shapes.npz", x_train=images, y_train=labels)
    values = {
        "data": {"spec": str(tmp_path / "shapes.npz"), "batch_size": 32, "calibration": 32},
        "model": {
            "spec": "penjing:vgg_small",
            "options": {"widths": [8], "convs": [1], "hidden": [32, 32]},
        },
        "train": {"epochs": 2, "lr": 0.05},
        "prune": {
            "ratio": 0.5,
            "scope": "local",
            "sparse": {"epochs": 1, "regularize": {"soft": {"ratio": 0.5}}},
        },
        "recover": {"epochs": 1},
    }
    recipe = Recipe.parse(values)
    assert Recipe.parse(recipe.to_dict()) == recipe
    stages = {stage.name: stage for stage in stages_of(recipe)}
    assert list(stages)[:4] == ["train", "sparse", "prune", "recover"]
    assert "sparse" in stages["prune"].requires
    space = Workspace(recipe, tmp_path / "run")
    for name in ("train", "sparse", "prune"):
        stages[name].work(space, lambda event: None)
    sparse = space.load_weights(space.original(), "sparse")
    small = space.student("pruned")
    with torch.no_grad():
        # what soft pruning silenced is what goes, so nothing changes
        assert torch.allclose(small.eval()(space.examples), sparse.eval()(space.examples), atol=1e-5)


def test_sparse_training_names_its_regularizer() -> None:
    values: dict[str, Any] = {
        "data": {"spec": "x"},
        "model": {"spec": "x"},
        "prune": {"ratio": 0.5, "sparse": {}},
    }
    with pytest.raises(RecipeError, match="needs `regularize`"):
        Recipe.parse(values)
