"""Interrupts that do not get lost: one swallowed on its way up is raised again at the next event."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from penjing.events import Event, Listener

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_waiting: list[int] = []


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """SIGINT and SIGTERM raise `KeyboardInterrupt` inside; the handlers from before come back afterwards.

    Gives the list of the signals that came.
    """
    came: list[int] = []

    def interrupt(signum: int, frame: Any) -> None:
        came.append(signum)
        _waiting.append(signum)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield came
    finally:
        _waiting.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def watched(listen: Listener) -> Listener:
    """A listener that raises an interrupt which other code swallowed.

    A signal may arrive inside an import or a destructor of a library that drops every exception there.
    """

    def heard(event: Event) -> None:
        if _waiting:
            _waiting.clear()
            raise KeyboardInterrupt
        listen(event)

    return heard
