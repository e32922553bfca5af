"""Exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """What the exit code says."""

    OK = 0
    BUG = 1
    WRONG = 2  # an error with cause and remedy
    NOT_HELD = 3  # done, but the allowed loss of accuracy did not hold
    INTERRUPTED = 130  # by SIGINT
    TERMINATED = 143  # by SIGTERM
