"""Data without labels, the whole way: quality is how far a network answers as the original does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.events import Event
from penjing.measure import wilson
from penjing.measure.original import Answered, agreement, fidelity, needing_no_labels
from penjing.report.metrics import Metrics


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, outputs)
    ).eval()


def batches(count: int, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 8, generator=draw) for _ in range(count)]


def test_the_two_measures() -> None:
    theirs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 6.0]])
    assert agreement(theirs, theirs) == fidelity(theirs, theirs) == 1.0
    assert agreement(theirs[:, [1, 0]], theirs) == 0.0
    assert fidelity(theirs.mean().expand(4, 2), theirs) == pytest.approx(0.0)
    assert needing_no_labels(theirs) is agreement
    assert needing_no_labels(theirs[:, :1]) is fidelity
    assert needing_no_labels(torch.zeros(2, 3, 4)) is fidelity


def test_a_network_answers_its_own_batches() -> None:
    model, data = network(3), batches(2, 0)
    for (inputs, answers), given in zip(Answered([(x, x) for x in data], lambda: model), data, strict=True):
        assert inputs is given
        assert torch.equal(answers, model(given))


@pytest.mark.parametrize(("outputs", "what"), [(5, "agreement"), (1, "fidelity")])
def test_compress_without_labels(outputs: int, what: str, tmp_path: Path) -> None:
    model = network(outputs)
    data = {"train": batches(12, 1), "val": batches(6, 2), "test": batches(6, 3)}
    result = pj.compress(
        model,
        data,
        budget=pj.Budget(params=0.6),
        max_drop=0.9,
        trials=1,
        recover=pj.RecoverConfig(epochs=2),
        formats=("onnx",),
        out=tmp_path / "out",
    )
    found = Metrics.read(tmp_path / "out")
    assert found.metric == what
    rows = {row.key: row for row in found.rows}
    assert rows["dense"].metric == pytest.approx(1.0)
    assert rows["dense"].accuracy["test"].value == pytest.approx(1.0)
    served = pj.load(tmp_path / "out")
    with torch.no_grad():
        theirs, mine = (torch.cat([one(x) for x in data["val"]]) for one in (model, served))
    measure: Any = {"agreement": agreement, "fidelity": fidelity}[what]
    assert rows["recovered"].metric == pytest.approx(measure(mine, theirs), abs=1e-3)
    before, after = rows["pruned"].metric, rows["recovered"].metric
    assert before is not None
    assert after is not None
    assert after > before - 1e-6
    cell = rows["int8"].accuracy["test"]
    assert cell.n == 96
    ends = (cell.low, cell.high)
    assert ends == (wilson(round(cell.value * 96), 96) if what == "agreement" else (None, None))
    assert not found.classifies
    assert any(what in note for note in found.notes)
    assert result.met


def test_one_answer_to_everything_is_told(tmp_path: Path) -> None:
    """Agreement with it would be full whatever is done."""
    heard: list[Event] = []
    for at, bias in enumerate((0.0, 100.0)):
        model = network(4)
        with torch.no_grad():
            model[-1].bias[2] += bias  # type: ignore[index]
        pj.compress(
            model,
            {"train": batches(3, 1), "val": batches(2, 2)},
            max_drop=None,
            trials=1,
            recover=pj.RecoverConfig(epochs=1),
            quantize=None,
            formats=("onnx",),
            out=tmp_path / str(at),
            listen=heard.append,
        )
        told = [
            event.message for event in heard if "answers class 2 to all of 32 validation" in event.message
        ]
        assert bool(told) == bool(bias)
        assert any("answers class 2" in note for note in Metrics.read(tmp_path / str(at)).notes) == bool(bias)


def test_a_run_without_labels_goes_on(tmp_path: Path) -> None:
    data = {"train": batches(6, 1), "val": batches(3, 2)}
    options: dict[str, Any] = {
        "max_drop": 0.9,
        "trials": 1,
        "recover": pj.RecoverConfig(epochs=1),
        "quantize": None,
        "formats": ("onnx",),
    }
    first = pj.compress(network(4), data, out=tmp_path / "out", **options)
    again = pj.compress(network(4), data, out=tmp_path / "out", resume=True, **options)
    assert first.metrics.to_dict() == again.metrics.to_dict()


def test_labelled_data_can_be_judged_by_the_original(tmp_path: Path) -> None:
    model = network(3)
    data = [[(x, torch.zeros(16, dtype=torch.int64)) for x in batches(n, n)] for n in (8, 4)]
    options: dict[str, Any] = {
        "max_drop": 0.9,
        "trials": 1,
        "recover": pj.RecoverConfig(epochs=1),
        "quantize": None,
        "formats": ("onnx",),
    }
    pj.compress(model, data, metric="agreement", out=tmp_path / "out", **options)
    dense = Metrics.read(tmp_path / "out").rows[0]
    assert dense.metric == 1.0
    expected = sum(int((model(x).argmax(1) == 0).sum()) for x, _ in data[1])
    assert dense.accuracy["val"].value == pytest.approx(expected / 64)
