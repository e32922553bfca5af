"""Files appear whole or not at all: everything is written aside and renamed into place."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from safetensors import SafetensorError

from penjing.errors import LockedError, PenjingError, RunError

_TEMPORARY = "penjing-tmp-"
_INSIDE = ".inside.part"
"""Ending of a temporary folder that is in the folder its entries go to."""
_LOCKED: weakref.WeakSet[IO[Any]] = weakref.WeakSet()
_REFUSED = (OSError, SafetensorError)  # safetensors reports a full disk as an error of its own


def from_home(path: Path | str) -> str:
    """A path as people write it in a recipe, with its ``~`` made the home folder as a shell would."""
    return os.path.expanduser(str(path))


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it is flushed to disk and becomes ``path``.

    Raises:
        RunError: if the folder cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
        mode = stat.S_IMODE(aside.stat().st_mode)  # what the umask gives; some writers make private files
        yield aside
        aside.chmod(mode)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except _REFUSED as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # where it could not even be named
            aside.unlink(missing_ok=True)


def unwritable(path: Path, error: Exception) -> RunError:
    """What is raised where a file or folder cannot be written."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # one for each file not copied
        error = OSError(0, str(error.args[0][0][-1]))
    cause = f"cannot write {_meant(Path(path))} ({getattr(error, 'strerror', None) or error})"
    ours = any(part.startswith(_TEMPORARY) for part in Path(path).parts)
    remedy = "Make room there, or set TMPDIR to" if ours else "Choose"
    return RunError(cause, remedy=f"{remedy} a writable folder with free space")


def _meant(path: Path) -> Path:
    """Where a file would have come to lie that is written into a temporary folder of `_beside`."""
    parts = list(path.parts)
    for at in reversed(range(len(parts) - 1)):  # a folder: the last part is what is written
        name = parts[at].removeprefix(".").removesuffix(".part")
        if parts[at] == f".{name}.part":
            inside = parts[at].endswith(_INSIDE)
            parts[at : at + 1] = [] if inside else [name]
    return Path(*parts)


def check_permitted(path: Path, kind: type[PenjingError]) -> None:
    """After a file could not be read: tell whether that is only a matter of permission. Libraries take such a
    file for a damaged one, or for none.

    Raises:
        PenjingError: of class ``kind``, where this user may not read it.
    """
    if path.exists() and not os.access(path, os.R_OK):
        raise kind(
            f"no permission to read {path}", layer=path.name, remedy="Let its owner permit it, or give a copy"
        )


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for files that go afterwards.

    Raises:
        RunError: where there is no place for one.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=_TEMPORARY)
    except OSError as error:
        raise unwritable(Path(_TEMPORARY), error) from error
    with folder as name:
        yield Path(name)


def check_folder(folder: Path | str) -> None:
    """Refuse a folder that could not be written, before any work is done for it.

    Raises:
        RunError: where a file stands in the way, the nearest folder that exists is not writable, or the path
            is none (a name that is too long, a link that leads to itself).
    """
    folder = Path(folder)
    try:
        folder.resolve()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except (OSError, RuntimeError) as error:
        raise unwritable(folder, error) from error
    ups = (Path(*folder.parts[:place]) for place, part in enumerate(folder.parts) if place and part == "..")
    if lost := next((path for path in ups if not path.exists()), None):  # nothing leads up from there
        raise unwritable(folder, FileNotFoundError(0, f"{lost} does not exist"))
    if not there.is_dir():
        raise unwritable(folder, NotADirectoryError(0, f"{there} is a file"))
    if not os.access(there, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(0, f"no permission to write in {there}"))


def atomic_dir(path: Path | str) -> AbstractContextManager[Path]:
    """Give a fresh temporary folder beside ``path``; on success it replaces ``path`` as a whole.

    Raises:
        LockedError: while another process writes it.
        RunError: if the folder cannot be written.
    """
    return _beside(Path(path), _replace)


def staged(folder: Path | str, name: str = "") -> AbstractContextManager[Path]:
    """Give a fresh temporary folder beside ``folder``; on success its entries are moved there, over old ones.

    With a ``name`` (of what is written) it is in ``folder``, where others may be written meanwhile.

    Raises:
        LockedError: while another process writes it.
        RunError: if the folder cannot be written.
    """
    return _beside(Path(folder), _merge, name)


@contextmanager
def _beside(path: Path, settle: Callable[[Path, Path], None], name: str = "") -> Iterator[Path]:
    """A temporary folder beside ``path`` (in it, where it cannot be renamed: see `_is_fixed`, or for one
    ``name`` alone) that ``settle`` brings to its place at the end.
    """
    place = path.resolve()  # a link goes on leading where it leads, and "." has a name
    inside = bool(name) or _is_fixed(place)
    aside = (place if inside else place.parent) / f".{name or place.name}{_INSIDE if inside else '.part'}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        with _claimed(aside, path):
            for left in aside.iterdir():  # by a process that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            try:
                yield aside
                settle(aside, place)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except _REFUSED as error:
        raise unwritable(path, error) from error


@contextmanager
def _claimed(aside: Path, path: Path) -> Iterator[None]:
    """Hold a temporary folder for this process: two that fill one would leave a mixture."""
    handle = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise LockedError(
            f"{path} is being written by another process", remedy="Wait for it, or choose another folder"
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def _is_fixed(path: Path) -> bool:
    """Whether a folder cannot be renamed: mounted, the current one, or in one that is not writable."""
    if not path.is_dir():
        return False
    current = Path.cwd().is_relative_to(path)
    return current or path.is_mount() or not os.access(path.parent, os.W_OK | os.X_OK)


def _replace(aside: Path, path: Path) -> None:
    if aside.parent == path:
        for old in set(path.iterdir()) - {aside}:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        move_into(aside, path)
        return
    if not path.is_dir():
        os.replace(aside, path)
        return
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    os.replace(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def _merge(aside: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    move_into(aside, folder)


def move_into(source: Path, folder: Path, last: str = "") -> list[str]:
    """Rename a folder's entries into another, the one called ``last`` at the end; gives their names."""
    names = sorted((path.name for path in source.iterdir()), key=lambda name: (name == last, name))
    for name in names:
        target = folder / name
        if target.is_symlink():  # it goes, where it leads stays
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        os.replace(source / name, target)
    return names


def write_json(path: Path | str, data: Any) -> None:
    """Write plain data as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or is nested without end.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


F = TypeVar("F", bound=IO[Any])


def unshared(file: F) -> F:
    """The file, to be locked by this process alone.

    A lock of the kernel lasts until the last process that has the file has closed it, and processes that are
    forked meanwhile (the workers of a loader) have it: they would go on holding it when this one is killed.
    """
    _LOCKED.add(file)
    return file


def release(file: IO[Any]) -> None:
    """Unlock and close a file: free at once, though a fork made just now may not have given it up yet."""
    if not file.closed:
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _give_up_locked() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in _LOCKED:
        if not file.closed:
            os.dup2(nothing, file.fileno(), inheritable=False)  # the number stays taken: it is closed later
    os.close(nothing)


os.register_at_fork(after_in_child=_give_up_locked)
