"""What a run remembers on disk: a marker per finished stage, with hashes of what went in and came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penjing.files import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class Marker:
    """A finished stage.

    Attributes:
        stage: Its name.
        key: Hash of all it depended on: its part of the recipe, the seed, and the outputs of the stages it
            read.
        result: Numbers and facts that are the same whenever the run is repeated.
        timing: Seconds and latencies, which are not.
        files: sha256 of each file or folder it wrote, by path relative to the run folder.
    """

    stage: str
    key: str
    result: dict[str, Any]
    timing: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of what came out; timing is no part of it."""
        return hash_json({"stage": self.stage, "result": self.result, "files": self.files})


class Store:
    """The markers of one run folder.

    Args:
        folder: The run folder; markers live in ``work/stages/``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: dict[tuple[str, int, int], str] = {}

    def read(self, stage: str) -> Marker | None:
        """The marker of a stage, or None if it never finished (an unreadable marker counts as none)."""
        try:
            values = read_json(self._path(stage))
            return Marker(**values) if values.pop("format", None) == FORMAT else None
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return None

    def write(self, marker: Marker) -> None:
        """Record a finished stage; its files are on disk by now."""
        write_json(self._path(marker.stage), {"format": FORMAT, **marker.__dict__})

    def remove(self, stage: str) -> None:
        """Forget a stage that is about to be done again."""
        self._path(stage).unlink(missing_ok=True)

    def finished(self, stage: str, key: str) -> Marker | None:
        """The marker, if the stage finished with these inputs and its files are still what it wrote."""
        marker = self.read(stage)
        if marker is None or marker.key != key:
            return None
        for name, digest in marker.files.items():
            path = self.folder / name
            if not path.exists() or self.hash(path) != digest:
                return None
        return marker

    def hash_files(self, names: Sequence[str]) -> dict[str, str]:
        """sha256 of files and folders by path relative to the run folder."""
        return {name: self.hash(self.folder / name) for name in names}

    def hash(self, path: Path) -> str:
        """sha256 of a file, or of a folder's names and contents; remembered while size and time stay."""
        if path.is_dir():
            parts = {str(p.relative_to(path)): self.hash(p) for p in sorted(path.rglob("*")) if p.is_file()}
            return hash_json(parts)
        stat = path.stat()
        at = (str(path), stat.st_size, stat.st_mtime_ns)
        if at not in self._hashes:
            with open(path, "rb") as file:
                self._hashes[at] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[at]

    def _path(self, stage: str) -> Path:
        return self.folder / "work" / "stages" / f"{stage}.json"


def stage_key(stage: str, config: Any, seed: int, inputs: Mapping[str, str]) -> str:
    """Hash of everything a stage depends on.

    Args:
        stage: Its name.
        config: Its part of the recipe, as plain data.
        seed: The run's seed.
        inputs: Digests of what it reads, by name.
    """
    return hash_json(
        {"format": FORMAT, "stage": stage, "config": config, "seed": seed, "inputs": dict(inputs)}
    )


def hash_json(data: Any) -> str:
    """sha256 of plain data, independent of key order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
