"""Progress on standard error: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from penjing.cli.interrupts import watched
from penjing.events import Event, Listener, silent

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Listener]:
    """A listener that shows what it hears; of torchrun's processes only the first one's does.

    Args:
        quiet: Show nothing.
        stream: By default standard error; live when it is a terminal.
    """
    stream = stream or sys.stderr
    if quiet or ("LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0"):
        yield watched(silent)
    elif stream.isatty():
        with _live(Console(file=stream)) as shown:
            yield watched(_Live(shown))
    else:
        yield watched(_Plain(stream))


def without_notes(listen: Listener) -> Listener:
    """The same listener but for notes, where the result tells them."""
    return lambda event: None if event.kind == "note" else listen(event)


def values(metrics: Mapping[str, float]) -> str:
    """``loss 1.234  val_accuracy 0.951  params 80,426``."""
    return "  ".join(f"{name} {_number(value)}" for name, value in metrics.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 and float(value).is_integer() else f"{value:.4g}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_pace(speed, task.fields.get("unit", "step")) if speed else "", style="dim")


def _pace(speed: float, unit: str) -> str:
    """Units in a second, or where they are long the seconds of one."""
    return f"{speed:.3g} {unit}/s" if speed >= 0.5 else f"{1 / speed:.3g} s/{unit}"


def _live(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[live]}", style="dim"),
        console=console,
        transient=True,
    )


class _Live:
    """One bar for the whole run and one for the stage at work."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._run: TaskID | None = None
        self._stage: TaskID | None = None
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.stage == "run":
            self._whole(event)
        elif event.kind == "start":
            self._begin(event)
        elif event.kind == "progress":
            self._advance(event)
        elif event.kind == "end":
            self._end(event)
        elif event.message and event.kind != "error":  # it is said at the end
            style = "yellow" if event.kind == "warning" else "dim"
            self._shown.console.print(f"  {event.message}", style=style, markup=False, highlight=False)
        elif event.metrics and self._stage is not None:
            self._shown.update(self._stage, live=values(event.metrics))

    def _whole(self, event: Event) -> None:
        if event.kind == "start":
            self._run = self._shown.add_task("run", total=event.total, unit="stage", live="")
        elif event.kind == "progress" and self._run is not None:
            self._shown.update(self._run, completed=event.step)
            if event.message.endswith("done before"):
                self._shown.console.print(f"✓ {event.message}", style="dim", markup=False, highlight=False)

    def _begin(self, event: Event) -> None:
        if self._stage is not None:
            self._shown.remove_task(self._stage)
        self._began = time.monotonic()
        self._stage = self._shown.add_task(
            event.message or event.stage,
            total=event.total or 1,
            completed=event.step,  # of a resumed stage: what was done before says nothing of its pace
            unit="step",
            live="",
        )

    def _advance(self, event: Event) -> None:
        if self._stage is None:
            self._begin(event)
        assert self._stage is not None
        live = values(event.metrics) or event.message
        self._shown.update(
            self._stage, completed=event.step, total=event.total or 1, unit=event.unit, live=live
        )

    def _end(self, event: Event) -> None:
        seconds = event.metrics.get("seconds", time.monotonic() - self._began)
        if self._stage is not None:
            self._shown.remove_task(self._stage)
            self._stage = None
        line = f"✓ {event.message or event.stage}  {seconds:.1f} s"
        self._shown.console.print(line, markup=False, highlight=False)


class _Plain:
    """Lines without control signs, at most one every ten seconds besides beginnings and ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0
        self._began: dict[str, tuple[float, int]] = {}  # when, and after how many steps (of a resumed stage)
        self._fresh: set[str] = set()  # stages that have told of no step yet

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "start":
            self._began[event.stage] = now, event.step
            self._fresh.add(event.stage)
        elif event.kind == "progress" and event.stage in self._fresh:
            self._fresh.remove(event.stage)
            # much is set up in a first step: it tells no pace
            if event.step == self._began[event.stage][1] + 1:
                self._began[event.stage] = now, event.step
        if event.kind == "progress" and event.stage != "run":
            if now - self._last < _SECONDS_BETWEEN_LINES or not event.total:
                return
            self._last = now
        line = self._line(event, now)
        if line:
            print(line, file=self._stream, flush=True)

    def _line(self, event: Event, now: float) -> str:
        if event.kind == "error":  # it is said at the end
            return ""
        parts = [f"[{event.stage}]"]
        if event.kind == "progress":
            parts.append(f"{event.step}/{event.total} {event.unit}")
            parts.append(self._left(event, now))
        elif event.kind in ("end", "warning"):
            parts.append({"end": "done", "warning": "warning:"}[event.kind])
        parts += [event.message, values(event.metrics)]
        return " ".join(part for part in parts if part) if any(parts[1:]) else ""

    def _left(self, event: Event, now: float) -> str:
        began, before = self._began.get(event.stage, (now, 0))
        spent, done = now - began, event.step - before
        if event.stage == "run" or done <= 0 or spent < 1:
            return ""
        rate = done / spent
        return f"({_pace(rate, event.unit)}, {(event.total - event.step) / rate:.0f} s left)"
