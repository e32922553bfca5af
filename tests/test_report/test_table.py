from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import by_metric, least, sample
from rich.console import Console

from penjing.cli.runs import finish
from penjing.errors import ArtifactError
from penjing.files import write_json
from penjing.recipe import RunResult
from penjing.report import Metrics, build_table, terminal_table, text, write_table
from penjing.report.page import render
from penjing.report.table import conditions as build_conditions


@pytest.fixture
def metrics() -> Metrics:
    return sample()


@pytest.fixture
def bare() -> Metrics:
    return least()


def test_metrics_round_trip(metrics: Metrics, tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", metrics.to_dict())
    assert Metrics.read(tmp_path) == metrics
    assert Metrics.read(tmp_path / "metrics.json") == metrics


@pytest.mark.parametrize(
    "content", [None, "{", "{}", '{"name": "x", "rows": [], "before": "a", "after": "b", "z": 1}']
)
def test_metrics_that_are_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        Metrics.read(tmp_path)


def test_a_busy_machine_is_told(metrics: Metrics) -> None:
    """A short call falls between two interruptions, a long one does not: medians do not compare."""
    assert "other work" not in text.headline(metrics) + build_conditions(metrics)
    rows = []
    for row in metrics.rows:
        calm = {"quiet_ms": 3.0 if row.key == metrics.before else 1.0}
        cells = tuple(cell.model_copy(update={**calm, "median_ms": 3.6}) for cell in row.latency)
        rows.append(row.model_copy(update={"latency": cells}))
    busy = metrics.model_copy(update={"rows": tuple(rows)})
    told = "3.00 → 1.00 ms at batch 1 (3× faster, without the other work that ran beside)"
    assert told in text.headline(busy)
    assert "other work ran while latency was timed: medians are up to 3.6×" in build_conditions(busy)


def test_a_metric_that_decides_beside_the_accuracy_is_shown(metrics: Metrics) -> None:
    assert not metrics.beside_accuracy
    rows = tuple(row.model_copy(update={"metric": 0.5 + 0.125 * at}) for at, row in enumerate(metrics.rows))
    judged = metrics.model_copy(update={"rows": rows, "metric": "iou"})
    out = io.StringIO()
    Console(file=out, width=200).print(terminal_table(judged))
    shown = out.getvalue()
    assert "val iou" in shown
    assert all(value in shown for value in ("0.5", "0.625", "0.75"))
    assert list(build_table(judged)["val_metric"]) == [0.5, 0.625, 0.75]
    assert "accuracy" in text.headline(judged)
    assert "validation iou 0.5 → 0.75" in text.headline(judged)
    assert text.score(0.625, judged) == "0.625"
    assert text.lost(0.0084, "absolute", judged) == "0.0084"
    assert "validation iou</th>" in render(judged)


def test_csv_json_and_frame_agree(metrics: Metrics, tmp_path: Path) -> None:
    csv, plain = write_table(metrics, tmp_path)
    frame, read = build_table(metrics), pd.read_csv(csv, keep_default_na=True)
    assert list(read.columns) == list(frame.columns)
    assert list(read["row"]) == ["dense", "pruned", "int8"]
    records = json.loads(plain.read_text())
    assert [set(record) for record in records] == [set(frame.columns)] * 3
    for record, (_, row) in zip(records, read.iterrows(), strict=True):
        for name in ("num_params", "size_bytes", "test_accuracy", "test_n", "latency_batch1_median_ms"):
            assert (record[name] is None and pd.isna(row[name])) or record[name] == row[name]


def test_a_metric_is_not_called_accuracy_in_the_files() -> None:
    frame = build_table(by_metric("iou"))
    assert frame["val_iou"].tolist()[0] == 0.95
    assert not [name for name in frame.columns if "accuracy" in name]


def test_a_metric_that_is_a_share_has_its_interval_in_its_own_unit(metrics: Metrics) -> None:
    rows = [
        row.model_copy(
            update={
                "accuracy": {k: v.model_copy(update={"metric": "agreement"}) for k, v in row.accuracy.items()}
            }
        )
        for row in metrics.rows
    ]
    note = f"The data has no labels: agreement is {text.WHAT_IT_IS['agreement']}; the original has 1"
    shares = metrics.model_copy(update={"rows": tuple(rows), "metric": "agreement", "notes": (note,)})
    assert metrics.classifies
    assert not shares.classifies
    out = io.StringIO()
    Console(file=out, width=200).print(terminal_table(shares))
    assert "0.934–0.947" in out.getvalue()
    assert "%" not in out.getvalue().partition("params")[0].replace("95% interval", "")
    assert f"{note}." in out.getvalue()  # what agreement is
    assert build_table(shares)["test_low95"].tolist()[0] == 0.9343
    assert text.interval(rows[0].accuracy["test"]) == "0.934–0.947, n=5000"
    assert "Bars are 95% intervals" in render(shares)
    assert "0.9412 (0.934–0.947, n=5000)" in render(shares)


def test_terminal_fits_eighty_columns(metrics: Metrics) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(terminal_table(metrics))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 100
    assert any("94.12" in line for line in lines)
    assert any("12.1 (13.0)" in line for line in lines)
    assert "…" not in out.getvalue()


def test_more_and_less_are_called_so() -> None:
    assert text.changed(10, 4, "smaller", "larger") == "2.5× smaller"
    assert text.changed(4, 10, "smaller", "larger") == "2.5× larger"
    assert text.changed(0.1, 0.1, "faster", "slower") == "unchanged"
    assert text.changed(3442, 3440, "smaller", "larger") == "about the same"
    assert text.changed(3440, 3442, "smaller", "larger") == "about the same"


def test_headline(metrics: Metrics, bare: Metrics) -> None:
    line = text.headline(metrics)
    assert "(10.4× fewer)" in line
    assert "409 MB → 9.9 MB on disk (41.3× smaller)" in line
    assert "12.1 → 1.10 ms at batch 1 (11× faster)" in line
    assert "94.12% → 94.04% (−0.08 points, n=5000)" in line
    assert text.headline(bare).endswith(".")
    assert text.headline(bare.model_copy(update={"before": "none"})) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(512, "512"), (9_870_000, "9.87M"), (102_345_678, "102M"), (999_999, "1M"), (0, "0")],
)
def test_counts(value: Any, shown: Any) -> None:
    assert text.count(value) == shown


@given(st.floats(0, 1e7))
def test_durations_have_units(seconds: float) -> None:
    assert text.duration(seconds)[-1] in "sn"


@given(st.floats(1e-4, 1e5))
def test_milliseconds_keep_three_digits(value: Any) -> None:
    assert float(text.milliseconds(value)) == pytest.approx(value, rel=0.01, abs=0.001)


INT8 = {**(sample().latency or {}), "precision": "int8"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_drop": 0.005}, "0.5 points of validation accuracy did not hold"),
        ({"max_drop": 0.01}, "loss of 1 point of validation accuracy did not hold"),
        ({"max_drop": 0.01, "drop": "relative"}, "1% of the validation accuracy did not hold"),
        ({"max_drop": 0.02, "metric": "iou"}, "0.02 of the validation iou did not hold"),
        (
            {"held": True, "search": None, "latency": INT8, "after": "recovered"},
            "held, but in float alone",
        ),
        ({"held": True}, "held, but not at the budget"),
    ],
)
def test_what_did_not_hold_is_said_in_its_own_unit(
    change: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = sample().model_copy(update={"held": False, "latency": None, **change})
    assert finish(RunResult(Path("run"), metrics), as_json=False) == 3
    assert words in capsys.readouterr().err
    said = re.search(r'class="verdict bad">(.*?)</p>', render(metrics))
    assert said is not None
    assert words in said[1]  # the page says the same
