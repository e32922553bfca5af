"""Folders appear whole, wherever they are."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from penjing.data import open_data
from penjing.errors import LockedError, PenjingError, RunError
from penjing.export.program import PROGRAM_FILE, read_program
from penjing.export.program_tensors import read_safetensors
from penjing.files import atomic_dir, atomic_write, check_folder, staged, temporary, unwritable
from penjing.manifest import json_if_any, yaml_if_any
from penjing.measure.metric import load_metric, score
from penjing.models.spec import files_of, load_model
from penjing.prune.plan import Plan


def write(folder: Path, name: str) -> list[str]:
    with atomic_dir(folder) as aside:
        (aside / name).write_text(name)
    return sorted(path.name for path in folder.iterdir())


def test_a_recipe_may_say_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell puts it in on a command line, and nobody in YAML."""
    monkeypatch.setenv("HOME", str(tmp_path))
    numpy.savez(tmp_path / "a.npz", x=numpy.zeros((8, 4, 4, 3), "uint8"), y=numpy.arange(8) % 2)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build(): return nn.Linear(2, 2)\ndef metric(z, y): return 0.0\n"
    )
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors")
    assert open_data("~/a.npz", val_fraction=0.5).image_shape == (3, 4, 4)
    assert isinstance(load_model("~/net.py:build", weights="~/w.safetensors").model, nn.Linear)
    assert [path.parent for path in files_of("~/w.safetensors")] == [tmp_path]
    assert score(load_metric("~/net.py:metric"), nn.Flatten(), [(torch.ones(1, 2), torch.ones(1))]) == 0.0


def test_a_link_goes_on_leading_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert write(tmp_path / "link", "a") == ["a"]
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["a"]


def test_the_current_folder_stays_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write(Path(), "a") == ["a"]
    assert write(Path(), "b") == ["b"]
    with staged(Path()) as aside:
        (aside / "c").write_text("c")
    assert sorted(os.listdir()) == ["b", "c"]


def test_a_mounted_folder_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    assert write(tmp_path / "out", "a") == ["a"]
    assert write(tmp_path / "out", "b") == ["b"]
    assert (tmp_path / "out").stat().st_ino == inode


@pytest.mark.parametrize("writes", [atomic_dir, staged])
def test_one_process_at_a_time_writes_a_folder(writes: Any, tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / ".out.part"
    left.mkdir()
    (left / "of_one_that_was_killed").write_text("old")
    with writes(out) as aside:
        (aside / "a").write_text("a")
        with pytest.raises(LockedError, match="out is being written by another process"), writes(out):
            pass
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["a"]


@pytest.mark.parametrize("writes", [atomic_dir, staged, lambda path: staged(path, "model.onnx")])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "out"])
def test_what_cannot_be_written_aside_is_named_as_it_was_given(
    writes: Any, inside: bool, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("penjing.files._is_fixed", lambda path: inside)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    with (
        pytest.raises(RunError, match=f"cannot write {out / name} "),
        writes(out) as aside,
        atomic_write(aside / name) as file,
    ):
        file.write_text("a")


def test_where_temporary_files_find_no_room_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with temporary() as folder:
        assert "set TMPDIR" in unwritable(folder / "a", full).remedy
        assert "TMPDIR" not in unwritable(tmp_path / "a", full).remedy
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match=r"No such file.*set TMPDIR"), temporary():
        pass


@pytest.mark.parametrize("name", ["a" * 252, "a" * 300, "file/in/a/file", "loop"])
def test_a_path_that_cannot_be_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    if name != "loop":  # a file takes its place; a folder cannot
        with pytest.raises(RunError, match=r"cannot write .*Choose"), atomic_write(tmp_path / name):
            pass
    if len(name) != 252:  # in which the name of a temporary file has no room
        with pytest.raises(RunError, match=r"cannot write .*Choose"):
            check_folder(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_up_from_where_nothing_is_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lost does not exist"):
        check_folder(tmp_path / "lost" / ".." / "out")
    (tmp_path / "lost").mkdir()
    check_folder(tmp_path / "lost" / ".." / "out")
    check_folder(Path("..") / "out")


@pytest.mark.parametrize("name", ["file", "folder"])
def test_where_a_link_stood_what_it_led_to_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("../mine")
    with staged(tmp_path / "out") as aside:
        (aside / "file").write_text("new")
        (aside / "folder").mkdir()
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert not (tmp_path / "out" / name).is_symlink()
    assert (tmp_path / "mine" / "kept").read_text() == "kept"


def test_of_files_that_were_not_copied_the_first_is_said(tmp_path: Path) -> None:
    failed = [("a", "b", "[Errno 28] No space left on device: 'b'"), ("c", "d", "the same")]
    cause = unwritable(tmp_path / "a", shutil.Error(failed)).cause
    assert cause == f"cannot write {tmp_path / 'a'} ([Errno 28] No space left on device: 'b')"


@pytest.mark.parametrize(
    "read",
    [
        read_program,
        lambda path: Plan.load(path / PROGRAM_FILE),
        lambda path: json_if_any(path / PROGRAM_FILE),
    ],
)
def test_json_nested_without_end_is_refused(read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / PROGRAM_FILE).write_text("[" * 200_000)
    with pytest.raises(PenjingError, match="nested too deeply"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.safetensors", read_safetensors),
        ("a.json", json_if_any),
        ("a.yaml", yaml_if_any),
        ("a.npz", open_data),
    ],
)
def test_what_may_not_be_read_is_not_called_damaged(
    name: str, read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"{\xff")
    with pytest.raises(PenjingError, match="read"):
        read(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # the superuser may read all
    with pytest.raises(PenjingError, match=r"no permission to read .*owner"):
        read(tmp_path / name)
