"""What ``max_drop`` is measured by, and what layers are that go back to float for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from penjing.batches import IGNORED
from penjing.errors import Int8LossError, QuantizeError
from penjing.quantize import QuantizeConfig, quantize, quantized_student
from penjing.quantize.check import Powers
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


def test_a_metric_of_targets_wants_targets(tmp_path: Path) -> None:
    """Largest numbers of fp32 along the last axis, which it was given, are no targets of a segmentation."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, padding=1).eval()
    data = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    out = tmp_path / "m.onnx"

    def right(scores: np.ndarray, labels: np.ndarray) -> float:
        return float((scores.argmax(1) == labels).mean())

    with pytest.raises(QuantizeError, match="compares outputs with targets, and the data has none"):
        quantize(model, data, {"max_drop": 0.5}, out=out, labels_metric=right, time_it=False)
    with torch.no_grad():
        judged = [(x, model(x).argmax(1)) for x in data]
    made = quantize(
        model, data, {"max_drop": 0.5}, out=out, labels_metric=right, eval_data=judged, time_it=False
    )
    assert made.metric_fp32 == 1


class Masked(nn.Module):
    """Scores, of which some can never be chosen; or the logarithm of a sum that a weight may spoil."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Six scores."""
        scores: Tensor = self.body(x)
        if self.kind == "nothing":
            return torch.log(scores - scores.abs() - 1)
        if self.kind == "some":
            return torch.cat([scores, torch.log(scores[:, :1] - scores[:, :1].abs() - 1)], dim=1)
        return scores.masked_fill(torch.arange(6) > 3, -torch.inf)


@pytest.mark.parametrize("config", [{}, {"max_drop": 0.1}, {"mode": "dynamic"}, {"mode": "weight_only"}])
@pytest.mark.parametrize("kind", ["masked", "some"])
def test_outputs_that_are_infinite_in_fp32_too(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [torch.randn(16, 12) for _ in range(4)]
    made = quantize(Masked(kind).eval(), data, config, out=tmp_path / "m.onnx", time_it=False)
    assert made.sqnr_db > 18
    share = {"masked": "33.33%", "some": "14.29%"}[kind]
    assert any(f"{share} of its values are NaN or infinite in fp32" in note for note in made.notes)


@pytest.mark.parametrize("config", [{}, {"max_drop": 0.1}, {"mode": "dynamic"}, {"mode": "weight_only"}])
def test_outputs_of_which_nothing_is_finite(config: dict[str, Any], tmp_path: Path) -> None:
    data = [torch.randn(16, 12) for _ in range(4)]
    with pytest.raises(QuantizeError, match="in fp32 all of"):
        quantize(Masked("nothing").eval(), data, config, out=tmp_path / "m.onnx", time_it=False)
    assert not list(tmp_path.iterdir())


def test_what_is_finite_in_fp32_alone_is_an_infinite_error() -> None:
    wanted = np.array([1.0, 2.0, -np.inf])
    for other, db in (
        (wanted, 200.0),
        ([1, np.nan, -np.inf], -200.0),
        ([1, np.inf, -np.inf], -200.0),
        ([1, 2, 3], -200.0),
    ):
        powers = Powers()
        powers.add("y", wanted, np.asarray(other))
        assert powers.worst() == db


class Wide(nn.Module):
    """Two layers of a chain read what one channel makes coarse, so that either alone gains little."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.c, self.out = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.a.weight[0] *= 200
            self.c.weight[:, 0] /= 200

    def forward(self, x: Tensor) -> Tensor:
        """Scores of four classes for each pixel."""
        x = torch.relu(self.a(x))
        y = functional.interpolate(torch.relu(self.b(x)), scale_factor=2.0, mode="bilinear")
        scores: Tensor = self.out(torch.relu(self.c(torch.cat([x, y], dim=1))))
        return scores


def test_layers_that_can_stay_are_found_where_others_ruin_the_output_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Wide().eval()
    inputs = [torch.randn(16, 3, 16, 16) for _ in range(4)]
    with torch.no_grad():
        data = [(x, model(x).argmax(1)) for x in inputs]
    config = {"max_drop": 0.02, "observer": "min_max", "equalize": False}
    made = quantize(model, data, config, out=tmp_path / "m.onnx", time_it=False)
    assert made.metric_int8 is not None
    assert made.metric_int8 >= 0.98
    assert made.num_quantized >= 1


def test_a_metric_that_fails_is_told_with_what_it_got(tmp_path: Path) -> None:
    model = nn.Linear(12, 4).eval()
    data = [(torch.randn(16, 12), torch.zeros(16, 3)) for _ in range(4)]
    with pytest.raises(
        QuantizeError, match=r"outputs of shape \[64, 4\] and targets of shape \[64, 3\]: Val"
    ):
        quantize(
            model,
            data,
            {"max_drop": 0.1},
            out=tmp_path / "m.onnx",
            labels_metric=lambda z, y: float(-np.square(z - y).mean()),
            time_it=False,
        )
