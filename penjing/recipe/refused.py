"""A run that is refused before its first stage, or before anything was made, leaves the disk as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penjing.recipe.workspace import Workspace

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


def holds_work(space: Workspace) -> bool:
    """Whether a stage has made what takes time: one that is finished and did not only read the network as
    given, a trial of a search, or a training that has begun.
    """
    made = {path.stem for path in space.work.glob("stages/*.json")}
    read = {"train"} if space.recipe.train is None else set()
    return bool(made - read) or any(space.work.glob("checkpoints/*/*"))


def leave_nothing(folder: Path, *, read_only: bool = False) -> None:
    """Remove what a run writes before its first stage; the caller holds the folder.

    Args:
        folder: Of the run; untouched (`is_untouched`) before it.
        read_only: Stages have begun, and none made anything (`holds_work`): all of ``work`` goes.
    """
    if read_only:
        for path in (folder / "work").iterdir():
            if path.name != "lock.json":  # it is held to the end
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for name in _OURS:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else may be in it
        (folder / "work").rmdir()
