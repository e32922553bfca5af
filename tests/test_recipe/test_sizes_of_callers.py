"""Sizes that callers choose, through a whole run: asked for once, free in every file, refused early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.errors import ExportError, RecipeError
from penjing.recipe import Recipe

CLASSES = 3
AXES = {"*": {2: "length"}}


class Sounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv1d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv1d(12, 12, 3, padding=1))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean(-1))  # type: ignore[no-any-return]


class Counts(Sounds):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / int(x.shape[2])


class Refuses(Sounds):
    """Its class cannot follow: it takes its own width for granted."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean(-1).reshape(-1, 12))  # type: ignore[no-any-return]


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(count)
    made = []
    for _ in range(count):
        label = torch.randint(0, CLASSES, (16,), generator=draw)
        made.append((torch.randn(16, 2, 10, generator=draw) + label[:, None, None], label))
    return made


def compressed(model: nn.Module, out: Path, **more: Any) -> Any:
    return pj.compress(
        model,
        (batches(6), batches(3)),
        budget={"params": 0.6},
        max_drop=None,
        recover=pj.RecoverConfig(epochs=1, lr=0.01),
        options={"export": {"dynamic_axes": AXES}, "measure": {"runs": 3, "batches": [1]}},
        out=out,
        **more,
    )


def test_every_file_of_a_run_takes_other_sizes(tmp_path: Path) -> None:
    result = compressed(Sounds(), tmp_path / "run", quantize=True, formats=("onnx",))
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(str(tmp_path / "run" / name))
        assert session.get_inputs()[0].shape == ["batch", 2, "length"]
        assert session.run(None, {"input": torch.randn(3, 2, 33).numpy()})[0].shape == (3, CLASSES)
        assert {"", "length = 20"} == {check.free for check in result.metrics.checks if check.file == name}
    assert "1, length = 20" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_size_that_the_network_fixes_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"length .* computes with it as the number 10"):
        compressed(Counts(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_that_cannot_follow_is_said_when_it_is_pruned(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no size can be left free: the class cannot follow"):
        compressed(Refuses(), tmp_path / "run")


def test_the_int8_file_is_free_where_the_float_files_are() -> None:
    def recipe(**quantize: Any) -> Recipe:
        spec = {"data": {"spec": "d"}, "model": {"spec": "m"}, "prune": {"ratio": 0.5}}
        return Recipe.parse({**spec, "export": {"dynamic_axes": AXES}, "quantize": quantize})

    assert recipe().quantize.dynamic_axes == AXES  # type: ignore[union-attr]
    own = {"x": {1: "n"}}
    assert recipe(dynamic_axes=own).quantize.dynamic_axes == own  # type: ignore[union-attr]
