"""A network that does not classify, from the command line: its metric is a function in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penjing.cli.app import main

FILE = """
import torch
from torch import nn


class Smooth(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        return x + self.head(self.body(x))


def build():
    torch.manual_seed(0)
    return Smooth(), torch.zeros(2, 1, 8, 8)


def data():
    draw = torch.Generator().manual_seed(0)
    clean = torch.randn(10, 16, 1, 8, 8, generator=draw)
    pairs = [(x + 0.1 * torch.randn(x.shape, generator=draw), x) for x in clean]
    return pairs[:8], pairs[8:]


def explained(outputs, targets):
    return float(1 - (outputs - targets).square().mean() / targets.var())
"""


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(FILE, encoding="utf-8")
    return tmp_path / "net.py"


def test_compress_and_its_steps(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, metric = net.parent, ["--metric", f"{net}:explained"]
    model, data = f"{net}:build", ["--data", f"{net}:data"]
    rest = ["--budget", "macs=0.6", "--max-drop", "40", "--epochs", "1", "--formats", "onnx", "--trials", "1"]
    assert (
        code_of("compress", model, *data, *metric, *rest, "--out", str(folder / "all (v 2)"), "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["metric"] == "explained"
    assert found["metrics"]["name"] == "all-v-2"
    assert "metric: " in (folder / "all (v 2)" / "recipe.yaml").read_text(encoding="utf-8")
    small, again, file = (str(folder / name) for name in ("small", "again", "a.onnx"))
    assert code_of("prune", model, "--ratio", "0.5", "--out", small) == 0
    refit = ["--ratio", "0.5", "--block-steps", "20", "--out", str(folder / "blocks"), "--json"]
    capsys.readouterr()
    assert code_of("prune", model, *data, *refit) == 0
    (block,) = json.loads(capsys.readouterr().out)["reconstruction"]["blocks"]
    assert block["layers"] == ["body.0.weight", "head.weight"]
    assert code_of("recover", small, "--teacher", model, *data, *metric, "--epochs", "1", "--out", again) == 0
    assert "validation metric" in capsys.readouterr().out
    assert code_of("quantize", again, *data, *metric, "--max-drop", "40", "--out", file) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{net}:nothing", "no function 'nothing'"),
        ("{net}", "is no metric"),
        ("none.py:f", "there is no such file"),
        ("{net}:build", "the metric failed"),
    ],
)
def test_a_metric_that_is_none(net: Path, spec: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, metric = str(net.parent / "out"), spec.format(net=net)
    data = ["--data", f"{net}:data", "--epochs", "1"]
    assert code_of("compress", f"{net}:build", *data, "--metric", metric, "--out", out) == 2
    assert words in capsys.readouterr().err
