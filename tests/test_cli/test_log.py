from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import RunError
from penjing.events import Event
from penjing.log import JsonLog, event_to_dict, read_log, tee, without_lines


def test_log_survives_being_cut_anywhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with JsonLog(path) as log:
        for step in range(3):
            log(Event("train", "progress", step, 3, "batch", {"loss": 0.5}, "Zeile ü"))
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with JsonLog(path) as log:
            log(Event("train", "note", message="again"))
        lines = read_log(path)
        assert lines[-1]["message"] == "again"
        assert len(lines) == whole[:cut].count(b"\n") + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """And closing, which tries to write again, says nothing else in its place."""
    log = JsonLog(tmp_path / "log.jsonl")
    with open("/dev/full", "ab") as full:
        os.dup2(full.fileno(), log._file.fileno())
    with log, pytest.raises(RunError, match=r"log.jsonl \(No space left"):
        log(Event("train", "note", message="one"))


@given(st.floats(), st.text(max_size=20))
def test_every_event_is_json(value: Any, message: Any) -> None:
    record = event_to_dict(Event("s", "metric", metrics={"x": value}, message=message))
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_tee_tells_all() -> None:
    heard = []
    tee(lambda e: heard.append(1), lambda e: heard.append(2))(Event("s", "note"))
    assert heard == [1, 2]


def test_lines_of_native_code_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    """Only those that begin so; the others come through, also where the block ends with an error."""
    with pytest.raises(ValueError, match="inside"), without_lines("I0000 ", "NOTE:"):  # noqa: PT012
        os.write(2, b"I0000 chatter\nW0000 heed this\nNOTE: chatter\n")
        raise ValueError("inside")
    os.write(2, b"I0000 after it\n")
    assert capfd.readouterr().err == "W0000 heed this\nI0000 after it\n"
