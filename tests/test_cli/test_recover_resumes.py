"""`penjing recover` goes on from the checkpoint beside its output."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.cli.app import main
from penjing.cli.verbs.recover import _text
from penjing.recover.loop import Loop
from penjing.recover.result import RecoverResult, StopReason

NETWORK = """
import torch
from penjing.models.mlp import mlp

def one(seed=0):
    torch.manual_seed(seed)
    return mlp(3, 1, 8, hidden=(8,)), torch.zeros(2, 1, 8, 8)
"""


def ended(loop: Loop) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Recover into a folder of a name; gives the exit code and standard error."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (24, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=images, y=np.arange(24) % 3)
    (tmp_path / "net.py").write_text(NETWORK)

    def run(out: str, *more: str) -> tuple[Any, str]:
        spec = f"{tmp_path / 'net.py'}:one"
        data = ["--data", str(tmp_path / "d.npz"), "--batch-size", "8", "--epochs", "3"]
        with pytest.raises(SystemExit) as stop:
            main(["recover", spec, "--teacher", spec, *data, "--out", str(tmp_path / out), *more])
        return stop.value.code, capsys.readouterr().err

    return run


def interrupted(call: Any, monkeypatch: pytest.MonkeyPatch, *, after: int) -> str:
    """Standard error of a recovery that ended when so many epochs were done."""
    whole = Loop._epoch
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_epoch", lambda loop: (whole if loop.progress.epoch < after else ended)(loop))
        code, said = call("parts")
    assert code == 130
    return str(said)


def test_what_was_interrupted_ends_as_if_it_had_not_been(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("whole")[0] == 0
    said = interrupted(call, monkeypatch, after=2)
    assert "Go on with: penjing recover" in said
    assert (tmp_path / "parts.checkpoint").is_dir()
    code, said = call("parts")
    assert (code, "resumed after epoch 2" in said) == (0, True)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert not list(tmp_path.glob("*.checkpoint"))


def test_other_options_networks_or_data_are_not_gone_on_with(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(call, monkeypatch, after=1)
    for more, named in (
        (("--lr", "0.5"), "lr"),
        (("--batch-size", "4"), "data.batch_size"),
        (("--option", "seed=1"), "teacher"),
    ):
        code, said = call("parts", *more)
        assert code == 2
        assert named in said
        assert "parts.checkpoint" in said
    shutil.rmtree(tmp_path / "parts.checkpoint")
    assert call("parts", "--lr", "0.5")[0] == 0


def test_what_ends_before_its_first_epoch_leaves_nothing(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(call, monkeypatch, after=0)
    assert not list(tmp_path.glob("parts*"))


def test_the_last_line_tells_of_the_weights_that_came_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gave the accuracy of the last epoch, whose weights were thrown away."""
    start, last = {"val_accuracy": 0.75}, {"val_accuracy": 0.25}
    made = RecoverResult(
        torch.nn.Identity(), [last], [], 1, 1, 1.0, StopReason.EPOCHS, "fp32", {}, start, "start"
    )
    assert "1 step in 1.0 s, validation accuracy 75.00% (the weights from before); " in _text(made, tmp_path)
    said = _text(replace(made, kept="last", steps=2), tmp_path)
    assert "2 steps in 1.0 s, validation accuracy 25.00%; " in said
