from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import penjing
from penjing.cli.interrupts import interrupts
from penjing.cli.progress import progress
from penjing.events import Event

EVENTS = [
    Event("run", "start", 0, 2, "stage", message="demo in runs/demo"),
    Event("train", "start", message="train the dense network"),
    Event("train", "progress", 1, 10, "batch", {"loss": 1.25}),
    Event("train", "metric", metrics={"val_accuracy": 0.5}),
    Event("train", "warning", message="slow disk"),
    Event("train", "end", metrics={"seconds": 2.0}, message="train the dense network"),
    Event("run", "progress", 1, 2, "stage", message="train: done"),
    Event("run", "end", 2, 2, "stage"),
]


class Terminal(io.StringIO):
    def isatty(self) -> Any:
        return True


def shown(stream: Any, **options: Any) -> Any:
    with progress(stream=stream, **options) as listen:
        for event in EVENTS:
            listen(event)
    return stream.getvalue()


def test_of_several_processes_the_first_one_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    for rank, says in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert bool(shown(io.StringIO())) == says


def test_the_pace_of_a_resumed_stage_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("penjing.cli.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with progress(stream=stream) as listen:
        listen(Event("recover", "start", 100, 200))
        clock[0] = 20.0
        listen(Event("recover", "progress", 110, 200))
    assert "[recover] 110/200 step (0.5 step/s, 180 s left)" in stream.getvalue()


def test_the_first_step_tells_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set up in it, and validated before it, made "324 s left" of two seconds."""
    clock = [0.0]
    monkeypatch.setattr("penjing.cli.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with progress(stream=stream) as listen:
        listen(Event("recover", "start", 0, 200))
        for step in range(1, 22):
            clock[0] = 20.0 + 0.5 * step
            listen(Event("recover", "progress", step, 200))
    assert stream.getvalue().splitlines() == [
        "[recover] 1/200 step",
        "[recover] 21/200 step (2 step/s, 90 s left)",
    ]


def test_the_pace_of_long_steps_is_told_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("penjing.cli.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with progress(stream=stream) as listen:
        listen(Event("study", "start", 2, 8, "trial"))
        clock[0] = 60.0
        listen(Event("study", "progress", 4, 8, "trial"))
    assert "4/8 trial (30 s/trial, 120 s left)" in stream.getvalue()


def test_plain_lines_have_no_control_signs() -> None:
    text = shown(io.StringIO())
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "[run] demo in runs/demo"
    assert "[train] 1/10 batch loss 1.25" in lines
    assert "[train] val_accuracy 0.5" in lines
    assert "[train] warning: slow disk" in lines
    assert "[train] done train the dense network seconds 2" in lines


def test_plain_progress_is_rare() -> None:
    stream = io.StringIO()
    with progress(stream=stream) as listen:
        for step in range(1000):
            listen(Event("train", "progress", step + 1, 1000, "batch"))
    assert len(stream.getvalue().splitlines()) == 1


def test_terminal_keeps_what_happened() -> None:
    text = shown(Terminal())
    assert "✓ train the dense network" in text
    assert "slow disk" in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_an_error_is_left_to_who_catches_it(stream: Any) -> None:
    shown = stream()
    with progress(stream=shown) as listen:
        listen(Event("train", "start", message="train"))
        listen(Event("train", "error", message="out of luck"))
    assert "out of luck" not in shown.getvalue()


def test_quiet_is_silent() -> None:
    assert shown(io.StringIO(), quiet=True) == ""


def test_a_swallowed_interrupt_is_raised_at_the_next_event() -> None:
    before, stream = signal.getsignal(signal.SIGINT), io.StringIO()
    with interrupts(), progress(stream=stream) as listen:
        with contextlib.suppress(KeyboardInterrupt):  # as a library may do in an import or a destructor
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            listen(Event("train", "start"))
        listen(Event("train", "end"))  # raised once
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_in_generated_code_leaves_the_exit_code_alone(tmp_path: Path) -> None:
    """Python ends itself by SIGINT where a plain KeyboardInterrupt has come out of ``exec`` of a text."""
    lines = [
        "import contextlib, signal, sys",
        "from penjing.cli.interrupts import interrupts",
        "with contextlib.suppress(KeyboardInterrupt), interrupts():",
        "    exec('signal.raise_signal(signal.SIGTERM)')",
        "sys.exit(143)",
    ]
    (tmp_path / "work.py").write_text("\n".join(lines))
    path = os.pathsep.join([str(Path(penjing.__file__).parents[1]), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-m", "work"], env=environment, timeout=120)
    assert done.returncode == 143


def test_after_an_interrupt_nothing_takes_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker that the same signal killed, a destructor that it came in the middle of."""

    class Careless:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def killed(signum: int, frame: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    def work() -> None:
        Careless()
        signal.raise_signal(signal.SIGCHLD)
        signal.raise_signal(signal.SIGTERM)

    hook, before = sys.unraisablehook, signal.signal(signal.SIGCHLD, killed)  # as torch does
    try:
        with interrupts() as signals, pytest.raises(KeyboardInterrupt):
            work()
        assert signals == [signal.SIGTERM, signal.SIGTERM]
        assert (sys.unraisablehook, signal.getsignal(signal.SIGCHLD)) == (hook, killed)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert capsys.readouterr().err == ""
