from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import LockedError, RunError
from penjing.files import _LOCKED
from penjing.recipe.lock import run_lock
from penjing.recipe.store import FORMAT, Marker, Store, hash_json, stage_key

HOLD = """
import sys, time
from pathlib import Path
from penjing.recipe.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
FORK = """
import multiprocessing, os, sys, time
from pathlib import Path
from penjing.recipe.lock import run_lock
def work():
    print(os.getpid(), flush=True)
    time.sleep(60)
with run_lock(Path(sys.argv[1])):
    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(60)
"""


def test_marker_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path)
    marker = Marker("prune", "key", {"a": [1, 2.5]}, {"seconds": 1.0}, {})
    store.write(marker)
    assert store.read("prune") == marker
    assert store.finished("prune", "key") == marker
    assert store.finished("prune", "other") is None
    store.remove("prune")
    assert store.read("prune") is None


def test_a_changed_file_unfinishes_a_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    store.write(Marker("s", "k", {}, {}, store.hash_files(["folder", "b"])))
    assert Store(tmp_path).finished("s", "k") is not None
    (tmp_path / "folder" / "a").write_text("three")
    assert Store(tmp_path).finished("s", "k") is None
    (tmp_path / "folder" / "a").write_text("one")
    assert Store(tmp_path).finished("s", "k") is not None
    (tmp_path / "b").unlink()
    assert Store(tmp_path).finished("s", "k") is None


def test_half_a_marker_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(Marker("s", "k", {"x": 1}))
    path = tmp_path / "work" / "stages" / "s.json"
    path.write_text(path.read_text()[:20])
    assert store.read("s") is None
    for content in (json.dumps({"format": 999}), json.dumps({"format": FORMAT, "x": 1}), "[]", "\udcff"):
        path.write_text(content, errors="surrogateescape")
        assert store.read("s") is None


def test_digest_ignores_timing_only() -> None:
    marker = Marker("s", "k", {"x": 1}, {"seconds": 1}, {"f": "h"})
    assert replace(marker, timing={"seconds": 2}).digest == marker.digest
    assert replace(marker, result={"x": 2}).digest != marker.digest
    assert replace(marker, files={"f": "i"}).digest != marker.digest


@given(st.dictionaries(st.text(max_size=4), st.integers(), max_size=5))
def test_hash_does_not_depend_on_order(values: Any) -> None:
    assert hash_json(values) == hash_json(dict(reversed(list(values.items()))))


def test_key_depends_on_everything() -> None:
    base = ("s", {"a": 1}, 0, {"train": "x"})
    others = [("t", *base[1:]), ("s", {"a": 2}, *base[2:]), (*base[:2], 1, base[3])]
    others.append((*base[:3], {"train": "y"}))
    keys = {stage_key(*arguments) for arguments in (base, *others)}
    assert len(keys) == 5


def test_a_lock_is_not_held_by_what_its_process_forked(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())  # written by the worker itself: it has given the lock up
    try:
        with pytest.raises(LockedError, match=f"process {process.pid} on"), run_lock(tmp_path):
            pass
        process.kill()
        process.wait()
        with run_lock(tmp_path) as taken_over:
            assert f"process {process.pid}" in taken_over
            os.kill(worker, 0)  # lives on
    finally:
        os.kill(worker, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_lock_is_free_at_its_end_though_another_process_has_the_file_yet(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        (file,) = (file for file in _LOCKED if not file.closed)
        copy = os.dup(file.fileno())  # what a fork has before its first instruction
    try:
        with run_lock(tmp_path) as taken_over:
            assert taken_over == ""
    finally:
        os.close(copy)


def test_lock_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "held"
        with pytest.raises(LockedError, match=f"process {process.pid} on"), run_lock(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with run_lock(tmp_path) as taken_over:
        assert f"process {process.pid}" in taken_over
    with run_lock(tmp_path) as taken_over:
        assert taken_over == ""


def test_a_full_disk_is_said_when_the_lock_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match=r"lock.json \(No space left"), run_lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), run_lock(tmp_path):
        raise ValueError("inside")
    with run_lock(tmp_path) as taken_over:
        assert taken_over == ""
