"""A network that was trained on normalised images is not taken for a bad one without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penjing.events import Event
from penjing.recipe.schema import Recipe
from penjing.recipe.stages.training import take_dense
from penjing.recipe.workspace import Workspace

NET = """
import torch
from torch import nn

def build():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-1.0, 1.0])[:, None].expand(2, 12))
        model[1].bias.fill_({bias}).mul_(torch.tensor([1.0, -1.0]))
    return model
"""


@pytest.mark.parametrize(
    ("bias", "normalize", "is_told"), [(0.0, "auto", True), (0.0, "mean_std", False), (6.0, "auto", False)]
)
def test_images_fed_as_no_one_said(tmp_path: Path, bias: float, normalize: str, is_told: bool) -> None:
    """Bright and dark images, told apart by the sign of what normalising leaves; with a bias, without it."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    images = (rng.integers(0, 90, (400, 2, 2, 3)) + 140 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=labels)
    (tmp_path / "net.py").write_text(NET.format(bias=bias))
    recipe = Recipe.parse(
        {
            "data": {"spec": str(tmp_path / "images.npz"), "normalize": normalize},
            "model": {"spec": f"{tmp_path / 'net.py'}:build"},
            "prune": {"ratio": 0.5},
        }
    )
    heard: list[Event] = []
    (tmp_path / "run").mkdir()
    output: Any = take_dense(Workspace(recipe, tmp_path / "run"), heard.append)
    told = [event.message for event in heard if "mean and deviation of the training images" in event.message]
    assert output.result.get("notes", []) == told
    assert bool(told) == is_told
    if is_told:
        assert "50.0% of 40 validation samples right" in told[0]
        assert "100.0%" in told[0]
        assert "--normalize mean_std" in told[0]
