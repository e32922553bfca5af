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
def interrupts() -> Iterator[None]:
    """SIGINT and SIGTERM raise `KeyboardInterrupt` inside; the handlers from before come back afterwards."""
    previous = {number: signal.signal(number, _raise) for number in _SIGNALS}
    try:
        yield
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


def _raise(signum: int, frame: Any) -> None:
    _waiting.append(signum)
    raise KeyboardInterrupt
