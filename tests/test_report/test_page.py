from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_samples import by_metric, least, sample

from penjing.report import Metrics, render, write_report
from penjing.report.text import headline

VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture
def metrics() -> Metrics:
    return sample()


@pytest.fixture
def bare() -> Metrics:
    return least()


class Checker(HTMLParser):
    """Tags must nest; text is collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.external: list[str] = []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.external += [value for name, value in attrs if name in ("src", "href", "srcset") and value]

    def handle_startendtag(self, tag: Any, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: Any) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: Any) -> None:
        self.text.append(data)


def read(page: Any) -> Any:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_page_is_whole_and_asks_for_nothing(metrics: Metrics) -> None:
    page = render(metrics)
    checker = read(page)
    assert checker.external == []
    assert re.findall(r"(?:https?:)?//[\w.]+|@import|url\(|<script", page) == []


def test_page_says_it_all(metrics: Metrics) -> None:
    words = " ".join(" ".join(read(render(metrics)).text).split())
    for fact in (
        "sample <b>&",
        "102M → 9.8M parameters",
        "held",
        "dense, trained properly",
        "94.12",
        "n=5000",
        "12.1 (13.0)",
        "64 → 20",
        "41.2 dB",
        "head stays float: the drop did not hold with it",
        "model.py:12",
        "1.00e-06",
        "Ж",
        "a note",
        "name: sample",
        "5 min 40 s",
        "a CPU",
    ):
        assert fact in words, fact


def test_a_loss_that_did_not_hold_is_said(metrics: Metrics) -> None:
    page = render(metrics.model_copy(update={"held": False}))
    assert "did not hold" in page


def test_least_metrics_make_a_page(bare: Metrics) -> None:
    words = " ".join(read(render(bare)).text)
    assert "Nothing was frozen" in words
    assert "bare" in words


def test_same_metrics_same_page(metrics: Metrics) -> None:
    assert render(metrics) == render(Metrics.parse(metrics.to_dict()))


def test_every_plot_is_xml(metrics: Metrics) -> None:
    plots = re.findall(r"<svg.*?</svg>", render(metrics), flags=re.S)
    assert len(plots) >= 6
    for plot in plots:
        ET.fromstring(plot)


def test_written_beside_its_tables(metrics: Metrics, tmp_path: Path) -> None:
    path = write_report(tmp_path, metrics)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "table.csv", "table.json"]
    assert path.read_text(encoding="utf-8") == render(metrics)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_drawn_in_a_browser(metrics: Metrics, tmp_path: Path, dark: bool) -> None:
    page = write_report(tmp_path, metrics)
    shot = tmp_path / "shot.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", "--window-size=900,1200"]
    if dark:
        command.append("--blink-settings=preferredColorScheme=0")
    subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"), dtype=int)
    corner, darkest, brightest = int(pixels[3, 3]), int(pixels.min()), int(pixels.max())
    assert (corner < 60) == dark
    assert brightest - darkest > 150  # there is writing on it


def test_what_the_search_did_is_shown(metrics: Metrics) -> None:
    text = " ".join(" ".join(read(render(metrics)).text).split())
    assert "a larger size had to be taken" in text
    assert "divergence of the outputs, nats" in text
    assert "features.0.weight:0, 50% removed: 0.3" in text
    assert "choice 1" in text
    assert "Щ" in text


def test_corrupted_images_are_of_the_split_that_there_is(metrics: Metrics) -> None:
    assert "Test accuracy under corruption" in render(metrics)
    rows = [
        row.model_copy(update={"accuracy": {k: v for k, v in row.accuracy.items() if k != "test"}})
        for row in metrics.rows
    ]
    assert "Validation accuracy under corruption" in render(metrics.model_copy(update={"rows": tuple(rows)}))


def test_without_a_test_set_nothing_is_said_of_one(metrics: Metrics) -> None:
    """Classes and confusions are of validation samples then, and no column stays empty."""
    cells = next(row.accuracy for row in metrics.rows if {"val", "test"} <= set(row.accuracy))
    files = tuple(file.model_copy(update={"accuracy": cells}) for file in metrics.files)
    metrics = metrics.model_copy(update={"files": files})
    assert "test samples" in render(metrics)
    assert "test accuracy of the file" in render(metrics)

    def without(cells: Any) -> Any:
        return {split: cell for split, cell in cells.items() if split != "test"}

    rows = tuple(row.model_copy(update={"accuracy": without(row.accuracy)}) for row in metrics.rows)
    files = tuple(file.model_copy(update={"accuracy": without(file.accuracy)}) for file in metrics.files)
    text = render(metrics.model_copy(update={"rows": rows, "files": files}))
    assert "validation samples" in text
    assert "Samples of the validation split" in text
    assert "test samples" not in text
    assert "test accuracy of the file" not in text


def test_how_images_go_in_is_said(metrics: Metrics) -> None:
    """Whoever serves the files has to know; where the user's own loaders do it, the page does not."""
    normalize = {"mean": (0.485, 0.5), "std": (0.229, 1.0)}
    said = " ".join("".join(read(render(metrics.model_copy(update={"normalize": normalize}))).text).split())
    assert "(pixel / 255 − mean) / std, channel by channel: mean 0.485, 0.5; std 0.229, 1." in said
    assert "channel by channel" not in "".join(read(render(metrics)).text)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (
            "absolute",
            ("0.8 points of validation accuracy", "has 95.00%", "90.00% 5.00 points", "trial 1: 90.00%"),
        ),
        ("relative", ("0.8% of the validation accuracy", "90.00% 5.00% did")),
        ("metric", ("0.008 of the validation iou", "has 0.95.", "0.9 0.0500 did")),
    ],
)
def test_what_a_trial_lost_is_in_the_unit_of_what_was_allowed(kind: str, facts: tuple[str, ...]) -> None:
    metrics = by_metric("iou") if kind == "metric" else sample()
    assert metrics.search is not None
    if kind == "relative":
        metrics = metrics.model_copy(update={"search": metrics.search.model_copy(update={"drop": kind})})
    words = " ".join(" ".join(read(render(metrics)).text).split())
    for fact in facts:
        assert fact in words, fact


def test_what_is_better_than_the_original_did_not_lose(metrics: Metrics) -> None:
    assert metrics.search is not None
    first, *others = metrics.search.trials
    trials = (first.model_copy(update={"drop": -0.01}), *others)
    better = metrics.model_copy(update={"search": metrics.search.model_copy(update={"trials": trials})})
    assert "gained 1.00 points" in " ".join(" ".join(read(render(better)).text).split())


def test_no_number_without_its_n(metrics: Metrics) -> None:
    words = " ".join(" ".join(read(render(metrics)).text).split())
    assert "under corruption, before and after; n=5000." in words
    assert "(n=5000)" in headline(by_metric("iou"))


def test_without_plots_nothing_is_said_of_their_axes(bare: Metrics) -> None:
    assert "axes are" not in render(bare)
