"""Structured logging: every event of a run as one JSON line, in a file that may be cut off anywhere."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penjing.events import Event, Listener
from penjing.files import unwritable


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as plain JSON data: empty parts left out, non-finite metrics as strings (JSON has no NaN)."""
    record: dict[str, Any] = {"stage": event.stage, "kind": event.kind}
    if event.total:
        record |= {"step": event.step, "total": event.total, "unit": event.unit}
    if event.metrics:
        record["metrics"] = {
            name: value if math.isfinite(value) else str(value) for name, value in event.metrics.items()
        }
    if event.message:
        record["message"] = event.message
    return record


def tee(*listeners: Listener) -> Listener:
    """One listener that passes every event to all of these, in order."""

    def listen(event: Event) -> None:
        for each in listeners:
            each(event)

    return listen


@contextmanager
def silenced(*names: str, level: int) -> Iterator[None]:
    """No warnings, and nothing under ``level`` from these loggers, for a while."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(level)
        try:
            yield
        finally:
            for logger, before in zip(loggers, levels, strict=True):
                logger.setLevel(before)


@contextmanager
def without_lines(*beginnings: str) -> Iterator[None]:
    """Leave out the lines with these beginnings that native code writes to standard error inside.

    Libraries print some outside their logs. The other lines come through when the block ends.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        usual = os.dup(2)
    except OSError:  # a process without standard error: nothing is printed anyway
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(usual, 2)
            os.close(usual)
            aside.seek(0)
            for line in aside:
                if not line.startswith(tuple(beginning.encode() for beginning in beginnings)):
                    os.write(2, line)


class JsonLog:
    """Appends events to a JSON-lines file; itself a listener, and a context manager.

    A process killed while writing leaves a last line without its end; opening again drops that fragment, so
    the file always parses. Each line is handed to the system at once, so a killed process loses no finished
    line.

    Args:
        path: The file, made if missing.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            drop_unfinished_line(self.path)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __call__(self, event: Event) -> None:
        """Append the event."""
        record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event_to_dict(event)}
        try:
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what could not be written was told then; closing tries it again
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """All finished lines of a JSON-lines log, oldest first."""
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def drop_unfinished_line(path: Path) -> None:
    """Cut a JSON-lines file back to its last whole line."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        tail = b""
        while size > 0:  # walk back to the last newline
            step = min(4096, size)
            size -= step
            file.seek(size)
            tail = file.read(step)
            end = tail.rfind(b"\n")
            if end >= 0:
                file.truncate(size + end + 1)
                return
        file.truncate(0)
