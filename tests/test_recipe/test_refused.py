"""A run that is refused, or interrupted, before its first stage leaves the disk as it was."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vector_data import halves

import penjing as pj
from penjing.errors import ExportError, LockedError, PenjingError, PruneError, RecipeError
from penjing.events import Event
from penjing.recipe.lock import run_lock

DATA = (halves(40, 0), halves(20, 1))


def refused(folder: Path, error: type[BaseException] = PruneError) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(error):
        pj.compress(model, DATA, prune={"ratios": {"nothing.*": 0.5}}, out=folder)


def test_nothing_is_left(tmp_path: Path) -> None:
    refused(tmp_path / "runs" / "new")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("recover", "where"),
    [
        ({"losses": {"kd": 1, "mse": {"layers": ["blocks.*"]}}}, "recover.losses"),
        ({"cutmix": 1.0}, "recover"),
    ],
)
def test_what_recovery_would_refuse_is_said_first(recover: Any, where: str, tmp_path: Path) -> None:
    """After hours of training it would be too late: a run goes on with its own recipe only."""
    with pytest.raises(PenjingError) as caught:
        pj.compress(
            nn.Linear(12, 2),
            DATA,
            prune={"ratio": 0.0},
            recover=pj.RecoverConfig.parse(recover),
            out=tmp_path / "new",
        )
    assert caught.value.layer == where
    assert caught.value.completed == ()
    assert not [*tmp_path.iterdir()]


def test_labels_that_a_loss_needs_are_missed_first(tmp_path: Path) -> None:
    train = [x for x, _ in DATA[0]]
    with pytest.raises(RecipeError, match="'dkd' needs labels and the data has none"):
        pj.compress(
            nn.Linear(12, 2),
            (train, DATA[1]),
            prune={"ratio": 0.0},
            recover=pj.RecoverConfig.parse({"losses": ["dkd"]}),
            out=tmp_path / "new",
        )


def test_an_operator_set_that_cannot_be_written_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset 7"):
        pj.compress(
            nn.Linear(12, 2),
            DATA,
            prune={"ratio": 0.0},
            options={"export": {"opset": 7}},
            out=tmp_path / "new",
        )
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    refused(tmp_path / "mine" / "new")
    assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]


def test_an_interrupt_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penjing.recipe.workspace.Workspace.inputs", interrupt)
    refused(tmp_path / "new", KeyboardInterrupt)
    assert not [*tmp_path.iterdir()]


def test_the_log_of_a_session_before_stays(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if event.stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pj.compress(nn.Linear(12, 2), DATA, prune={"ratio": 0.0}, out=tmp_path / "run", listen=interrupt)
    before = (tmp_path / "run" / "log.jsonl").read_text()
    refused(tmp_path / "run")
    assert before
    assert (tmp_path / "run" / "log.jsonl").read_text().startswith(before)


def test_a_lock_that_was_removed_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock
    calls: list[int] = []

    def after_the_other_has_gone(file: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:  # opened, not locked yet: its owner removes it
            (tmp_path / "work" / "lock.json").unlink()
            (tmp_path / "work").rmdir()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", after_the_other_has_gone)
    with run_lock(tmp_path):
        assert (tmp_path / "work" / "lock.json").read_text()
        with pytest.raises(LockedError), run_lock(tmp_path):
            pass


def test_nothing_is_left_where_the_network_was_only_read(tmp_path: Path) -> None:
    """Timings are kept in the cache, and the folder would go on with this budget only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(PenjingError, match="out of reach") as caught:
        pj.compress(model, DATA, budget=pj.Budget(latency="1us"), out=tmp_path / "runs" / "new")
    assert caught.value.completed == ()
    assert not [*tmp_path.iterdir()]


def test_what_was_computed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ExportError("no", remedy="none")

    monkeypatch.setattr("penjing.recipe.stages.quantize_student", refuse)
    with pytest.raises(ExportError) as caught:
        pj.compress(
            nn.Linear(12, 2),
            DATA,
            prune={"ratio": 0.0},
            recover=pj.RecoverConfig(epochs=1),
            max_drop=None,
            out=tmp_path / "run",
        )
    assert caught.value.completed == ("train", "prune", "recover")
    assert (tmp_path / "run" / "work" / "recovered.safetensors").exists()
