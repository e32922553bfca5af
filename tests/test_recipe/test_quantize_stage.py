"""A run's way to int8: training in it, and what is delivered where int8 loses too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penjing.recipe.stages.exporting as exporting
from penjing.errors import Int8LossError, RecipeError
from penjing.export import ExportResult, export
from penjing.recipe import Recipe, RunResult
from penjing.recipe.run import run
from penjing.recipe.store import Store


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "halves.npz"
    arrays: dict[str, Any] = {}
    for split, count in (("train", 96), ("val", 40)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 110, (count, 8, 8, 1))
        images[:, :4] += 110 * labels[:, None, None, None]
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images.astype(np.uint8), labels
    np.savez(path, allow_pickle=False, **arrays)
    return {
        "data": {"spec": str(path), "batch_size": 32, "calibration": 64},
        "model": {
            "spec": "penjing:vgg_small",
            "options": {"widths": [8], "convs": [1], "hidden": [16]},
        },
        "train": {"epochs": 2, "lr": 0.05},
        "prune": {"ratio": 0.25},
        "recover": {"epochs": 1, "lr": 0.02},
        "export": {"formats": ["onnx"], "batch_sizes": [1]},
        "measure": {"runs": 3, "batches": [1], "max_train": 10},
    }


@pytest.fixture(scope="module")
def taught(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    recipe = Recipe.parse({**values, "quantize": {"qat": {"epochs": 1, "lr": 0.001}}})
    return run(recipe, tmp_path_factory.mktemp("runs") / "run")


def test_a_run_trains_in_int8_and_writes_what_it_learned(taught: RunResult) -> None:
    notes = Store(taught.folder).read("quantize").timing["notes"]  # type: ignore[union-attr]
    assert any("quantization-aware training" in note for note in notes)
    assert not [*(taught.folder / "work" / "checkpoints").iterdir()]  # optimizer states, of no use any more
    assert (taught.folder / "model.int8.onnx").is_file()
    assert taught.metrics.after == "int8"


def test_without_an_int8_file_that_holds_the_float_network_is_delivered(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Int8LossError("no int8 layer can stay within max_drop=0.0", remedy="Accept a larger drop")

    def noting(*args: Any, **options: Any) -> ExportResult:
        made = export(*args, **options)
        return ExportResult(tuple(replace(file, notes=("its batch is fixed",)) for file in made.files))

    monkeypatch.setattr(exporting, "quantize", refuse)
    monkeypatch.setattr(exporting, "export", noting)
    metrics = run(Recipe.parse({**values, "quantize": {"max_drop": 0.0}}), tmp_path / "a").metrics
    assert metrics.after == "recovered"
    assert metrics.row("int8") is None
    assert any("no int8 layer can stay" in note for note in metrics.notes)
    assert "model.onnx: its batch is fixed" in metrics.notes
    assert {file.file for file in metrics.files} == {"model.onnx"}
    assert not (tmp_path / "a" / "model.int8.safetensors").exists()

    asked = {**values, "quantize": {"max_drop": 0.0, "fallback": "error"}}
    with pytest.raises(Int8LossError, match="no int8 layer can stay"):
        run(Recipe.parse(asked), tmp_path / "b")


@pytest.mark.parametrize(
    ("recipe", "own", "bound"),
    [
        ({"max_drop": 0.1}, {}, 0.08),  # what recovery has left
        ({"max_drop": 0.1, "drop": "relative"}, {}, 0.055),  # 0.1 of 0.75 less what recovery lost
        ({"max_drop": 0.1}, {"max_drop": 0.01}, 0.01),
        ({"max_drop": 0.01}, {}, 0.01),  # recovery has lost more: int8 may lose as much again
        ({}, {"max_drop": 0.01}, 0.01),
        ({}, {}, None),
        ({"max_drop": 0.1}, {"mode": "dynamic"}, None),
    ],
)
def test_int8_may_lose_what_recovery_has_left(
    recipe: dict[str, Any],
    own: dict[str, Any],
    bound: float | None,
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe's allowed loss bounds the int8 file, too, also where no size is searched for."""
    asked: list[Any] = []

    def refuse(model: Any, data: Any, config: Any, **_: Any) -> None:
        asked.append(config.max_drop)
        raise Int8LossError("enough seen", remedy="")

    scores = iter((0.75, 0.73))  # of the dense and the recovered network
    monkeypatch.setattr(exporting, "quantize", refuse)
    monkeypatch.setattr(exporting, "judge", lambda *_: next(scores))
    run(Recipe.parse({**values, **recipe, "quantize": own}), tmp_path / "run")
    assert asked == [pytest.approx(bound) if bound is not None else None]


def test_training_in_int8_is_for_static_ranges() -> None:
    with pytest.raises(RecipeError, match="qat trains mode 'static'"):
        Recipe.parse(
            {
                "data": {"spec": "glyphs"},
                "model": {"spec": "penjing:vgg_small"},
                "prune": {"ratio": 0.5},
                "quantize": {"mode": "dynamic", "qat": {"epochs": 1}},
            }
        )
