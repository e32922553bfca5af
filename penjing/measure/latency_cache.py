"""Timings that outlive the process: one JSON file for each machine, runtime version and thread count."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.errors import RunError
from penjing.events import Event, Listener
from penjing.files import read_json, write_json

FORMAT = 1


def cache_folder() -> Path:
    """Where timings are kept: ``$PENJING_CACHE``, or ``penjing`` in the user's cache folder, or in the folder
    for temporary files where the user has no home (a container under a number that nobody has).
    """
    own, caches = os.environ.get("PENJING_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    try:
        return Path(caches or Path.home() / ".cache") / "penjing"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"penjing-{os.getuid()}"


class TimingCache:
    """Seconds by key, for one set of conditions; what another process measured meanwhile is kept too.

    Args:
        conditions: Everything a timing depends on besides its key: device, runtime and version, threads.
        folder: By default `cache_folder`.

    Attributes:
        problem: Why timings cannot be kept on disk, or "". They then live as long as the process.
    """

    def __init__(self, conditions: Mapping[str, Any], folder: Path | None = None) -> None:
        self.conditions = dict(conditions)
        text = json.dumps(self.conditions, sort_keys=True)
        name = f"latency-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        self.path = (folder or cache_folder()) / name
        self.problem = self._told = ""
        self._seconds = self._read()

    def get(self, key: str) -> float | None:
        """The seconds of a key, or None if it was never timed under these conditions."""
        return self._seconds.get(key)

    def update(self, seconds: Mapping[str, float]) -> None:
        """Add timings and write them, together with what other processes have added."""
        self._seconds |= seconds
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._seconds = {**self._read(), **self._seconds}
                values = {"format": FORMAT, "conditions": self.conditions, "seconds": self._seconds}
                write_json(self.path, values)
        except (OSError, RunError) as error:  # timings are an economy: without a disk they are measured again
            self.problem = f"timings cannot be kept in {self.path.parent} ({error})"

    def tell(self, listen: Listener) -> None:
        """Say once why timings are not kept, where they are not."""
        if self.problem and self.problem != self._told:
            self._told = self.problem
            listen(Event("measure", "warning", message=self.problem))

    def _read(self) -> dict[str, float]:
        try:
            values = read_json(self.path)
            if values["format"] != FORMAT or values["conditions"] != self.conditions:
                return {}
            return {str(key): float(value) for key, value in values["seconds"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.problem = f"the timings in {self.path} cannot be read ({error}) and are measured again"
            return {}
