"""`penjing factorize`: an artifact that remembers its ranks, and what other verbs make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import penjing as pj
from penjing.artifact import read_artifact
from penjing.cli.app import main
from penjing.factor import with_ranks
from penjing.measure import count


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "d.npz"
    np.savez(path, x=draw.integers(0, 256, (24, 32, 32, 3), np.uint8), y=np.arange(24) % 10)
    return str(path)


@pytest.fixture(scope="module")
def thin(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("thin") / "out"
    options = ["--budget", "macs=0.5", "--block-steps", "2", "--ignore", "layer1.*"]
    assert _code("factorize", "penjing:resnet20", "--data", data, "--out", str(out), *options) == 0
    return out


def _code(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_the_artifact_holds_the_network_and_its_ranks(thin: Path) -> None:
    (stage,) = read_artifact(thin).stages
    assert stage["stage"] == "factorize"
    original = pj.load_model("penjing:resnet20").model.eval()
    small = pj.load(thin)
    again = with_ranks(original, stage["ranks"])
    again.load_state_dict(small.state_dict())
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(again(x), small(x), rtol=1e-4, atol=1e-5)
    assert stage["ranks"]
    assert not any(name.startswith("layer1.") for name in stage["ranks"])
    assert count(small, x[:1]).num_macs <= 0.5 * count(original, x[:1]).num_macs


def test_it_prints_what_it_did(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--budget", "params=0.6", "--block-steps", "0", "--ignore", "layer1.*"]
    assert _code("factorize", "penjing:resnet20", "--data", data, "--out", str(tmp_path / "x"), *options) == 0
    text = capsys.readouterr().out
    assert "whole: 6 layers, it is to be left alone" in text
    assert "error of the outputs on held-back samples" in text
    assert "layers split in two" in text


def test_what_comes_after_keeps_the_history(data: str, thin: Path, tmp_path: Path) -> None:
    recovered, pruned = tmp_path / "recovered", tmp_path / "pruned"
    teacher = ["--teacher", "penjing:resnet20", "--data", data, "--epochs", "1", "--set", "max_steps=1"]
    assert _code("recover", str(thin), *teacher, "--out", str(recovered)) == 0
    assert _code("prune", str(recovered), "--budget", "macs=0.7", "--out", str(pruned)) == 0
    assert [stage["stage"] for stage in read_artifact(pruned).stages] == ["factorize", "recover", "prune"]
    assert pj.load(pruned)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("budget", "says"),
    [("latency=0.5x", "macs and params"), ("macs=1e-4", "out of reach"), ("macs=half", "not a number")],
)
def test_a_budget_it_cannot_meet(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str, says: str
) -> None:
    out = tmp_path / "out"
    assert _code("factorize", "penjing:resnet20", "--data", data, "--out", str(out), "--budget", budget) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_a_traced_graph_cannot_be_split(
    data: str, thin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--budget", "macs=0.5"]
    assert _code("factorize", str(thin), "--data", data, *out) == 2
    assert "as its class" in capsys.readouterr().err
