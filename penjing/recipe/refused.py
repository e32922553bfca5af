"""A run that is refused before its first stage leaves the disk as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OURS = ("log.jsonl", "work/recipe.yaml", "work/inputs.json", "work/lock.json")  # the lock is held to the end


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Folders that are made inside, and are empty after an error, go again."""
    path = folder.absolute()
    missing = [one for one in (path, *path.parents) if not one.exists()]
    try:
        yield
    except BaseException:  # of an interrupt, too
        for one in missing:
            with suppress(OSError):
                one.rmdir()
        raise


def is_untouched(folder: Path) -> bool:
    """Whether no run has been there, not even one that did not get far: its log may be wanted."""
    return not (folder / "work").exists() and not (folder / "log.jsonl").exists()


def leave_nothing(folder: Path) -> None:
    """Remove what a run writes before its first stage; the caller holds the folder."""
    for name in _OURS:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else may be in it
        (folder / "work").rmdir()
