"""What ``max_drop`` is measured by, and what layers are that go back to float for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.batches import IGNORED
from penjing.errors import Int8LossError, QuantizeError
from penjing.quantize import QuantizeConfig, quantize, quantized_student
from penjing.quantize.mixed import top1


class Ruined(nn.Module):
    """One input of a middle layer is so large that in 8 bits nothing is left of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(12, 16), nn.Linear(17, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.middle.weight[:, :16] *= 10
            self.middle.weight[:, 16] = 1e-7 * torch.randn(16)
            self.last.weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.cat([self.first(x).relu(), 3e4 * x[:, :1]], dim=1)
        answer: Tensor = self.last(self.middle(found).tanh())
        return answer


@pytest.mark.parametrize("options", [{}, {"rounding": "blocks", "block_steps": 20}])
def test_the_layer_that_int8_ruins_goes_back_as_it_was(options: dict[str, Any], tmp_path: Path) -> None:
    """Blocks that are trained around it move its weights wildly: as a float layer it has its own again."""
    torch.manual_seed(0)
    model = Ruined().eval()
    inputs = [torch.randn(32, 12) for _ in range(6)]
    with torch.no_grad():
        data = [(x, model(x).argmax(1)) for x in inputs]
    config = QuantizeConfig.parse({"max_drop": 0.05, **options})
    made = quantize(model, data, config, out=tmp_path / "m.onnx", time_it=False)
    assert made.metric_fp32 == 1
    assert made.metric_int8 is not None
    assert made.metric_int8 >= 0.95
    assert "middle" in [row.name for row in made.layers if "max_drop" in row.why]
    assert made.num_quantized >= 1
    assert any("to hold the drop to 5 points" in note for note in made.notes)


def test_a_drop_that_cannot_be_held_is_told_in_points(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 4).eval()
    data = [torch.randn(64, 12) for _ in range(4)]
    config = QuantizeConfig.parse({"max_drop": 0.005, "weight_bits": 2})
    with pytest.raises(Int8LossError, match=r"drops by [\d.]+ points and .* within 0.5 points"):
        quantize(model, data, config, out=tmp_path / "m.onnx", time_it=False)


def test_what_was_trained_in_int8_is_told_to_train_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 4).eval()
    data = [torch.randn(64, 12) for _ in range(4)]
    config = QuantizeConfig.parse({"max_drop": 0.005, "weight_bits": 2})
    student = quantized_student(model, data, config)
    with pytest.raises(Int8LossError) as told:
        quantize(student, data, out=tmp_path / "m.onnx", time_it=False)
    assert "more epochs" in told.value.remedy
    assert "samples" not in told.value.remedy
    with pytest.raises(Int8LossError) as told:
        quantize(model, data, config, out=tmp_path / "m.onnx", time_it=False)
    assert "quantized_student" in told.value.remedy


class Tagger(nn.Module):
    """A class for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(50, 24), nn.Linear(24, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(self.words(ids)).relu())
        return answer


@pytest.mark.parametrize("labelled", [True, False])
def test_batches_of_several_lengths_are_judged(labelled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    sentences = [torch.randint(0, 50, (8, length)) for length in (6, 4, 9, 6)]  # one as long as classes are
    with torch.no_grad():
        data = [(ids, model(ids).argmax(-1)) if labelled else ids for ids in sentences]
    config = QuantizeConfig(max_drop=0.1, dynamic_axes={"*": {1: "length"}}, rounding="nearest")
    made = quantize(model, data, config, out=tmp_path / "m.onnx", time_it=False)
    assert made.metric_fp32 == 1
    assert made.metric_samples == 32
    with pytest.raises(QuantizeError, match="or no labels_metric"):
        quantize(model, data, config, out=tmp_path / "n.onnx", labels_metric=top1, time_it=False)


def test_positions_that_do_not_count() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(2, 7, 3))
    right = scores.argmax(2)
    partly = np.where(draw.random(right.shape) < 0.5, IGNORED, right)
    assert top1(scores, partly) == 1
    with pytest.raises(QuantizeError, match="every label of the data is -100"):
        top1(scores, np.full_like(right, IGNORED))
    with pytest.raises(QuantizeError, match="label 3 is outside the 3 classes of the network's first output"):
        top1(scores, right + 1 + (right == 1))


def test_targets_that_some_batches_lack(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(8, 12)
    with pytest.raises(QuantizeError, match="1 batches of the data have targets and 2 have none"):
        quantize(model, [x, (x, model(x).argmax(1)), x], {"max_drop": 0.1}, out=tmp_path / "m.onnx")
