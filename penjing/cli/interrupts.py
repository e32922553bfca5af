"""Interrupts that do not get lost: one swallowed on its way up is raised again at the next event."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from penjing.events import Event, Listener


class Interrupted(KeyboardInterrupt):
    """A signal came.

    A class of its own: where a plain `KeyboardInterrupt` comes out of ``exec`` of a text (data classes and
    generated code are made so), Python ends itself by SIGINT at exit, whatever the exit code was to be.
    """


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_waiting: list[int] = []


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """SIGINT and SIGTERM raise `Interrupted` inside; the handlers from before come back afterwards.

    A signal often reaches the workers of a loader, too. What their end, or a destructor that a signal came
    in the middle of, has to say after it is not told: it would take the place of the interrupt.

    Gives the list of the signals that came.
    """
    came: list[int] = []
    unraisable = sys.unraisablehook

    def interrupt(signum: int, frame: Any) -> None:
        came.append(signum)
        _waiting.append(signum)
        # torch's raises an error for a worker that was killed
        previous.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, _nothing))
        raise Interrupted

    def say(what: sys.UnraisableHookArgs) -> None:
        if not came:
            unraisable(what)

    previous: dict[int, Any] = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    sys.unraisablehook = say
    try:
        yield came
    finally:
        _waiting.clear()
        sys.unraisablehook = unraisable
        for number, handler in previous.items():
            signal.signal(number, handler)


def _nothing(signum: int, frame: Any) -> None:
    """Hears a signal and does nothing."""


def watched(listen: Listener) -> Listener:
    """A listener that raises an interrupt which other code swallowed.

    A signal may arrive inside an import or a destructor of a library that drops every exception there.
    """

    def heard(event: Event) -> None:
        if _waiting:
            _waiting.clear()
            raise Interrupted
        listen(event)

    return heard
