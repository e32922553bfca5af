"""One process per run folder: a lock that names its owner and cannot outlive it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from penjing.errors import LockedError, RunError
from penjing.files import release, unshared, unwritable

_ATTEMPTS = 10


@contextmanager
def run_lock(folder: Path) -> Iterator[str]:
    """Hold the folder for this process.

    The lock is the kernel's (``flock``), so it ends with its process, however that ends; the file's content
    only says who holds it. A content left without a lock is the mark of a process that was killed.

    Args:
        folder: The run folder, made if missing.

    Yields:
        A sentence about the owner that ended without finishing, or "".

    Raises:
        LockedError: naming the owner, if another process holds the folder.
        RunError: if the folder cannot be written.
    """
    path = folder / "work" / "lock.json"
    with _locked(folder, path) as file:
        handle = file.fileno()
        stale = _owner(handle)
        try:
            _write(handle, json.dumps(_self(), indent=2) + "\n")
        except OSError as error:  # a full disk
            with suppress(OSError):  # of a folder in which nothing has begun, nothing is to stay
                path.unlink()
                path.parent.rmdir()
            raise unwritable(path, error) from error
        try:
            yield f"taken over from {stale}, which ended without finishing" if stale else ""
        finally:
            _write(handle, "")  # the file stays: removing it would let two processes lock two files
            release(file)


def _locked(folder: Path, path: Path) -> IO[bytes]:
    """The file, open and locked. A run that is refused removes its own (`penjing.recipe.refused`), and a lock
    on what was removed between opening and locking keeps nobody out: then it is made again.
    """
    for left in reversed(range(_ATTEMPTS)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = unshared(os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "rb+", buffering=0))
        except OSError as error:
            if left and isinstance(error, FileNotFoundError):
                continue
            raise unwritable(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                return file
            release(file)
        except BlockingIOError as error:
            with file:
                owner = _owner(file.fileno()) or "another process"
            raise LockedError(
                f"{folder} is in use by {owner}",
                remedy="Wait for it, end that process, or choose another folder",
            ) from error
        except OSError as error:
            file.close()
            cause = f"{folder} cannot be locked ({error.strerror or error})"
            raise RunError(cause, remedy="Choose a folder on a file system with locks") from error
    raise LockedError(
        f"{folder} is in use by other processes", remedy="Wait for them, or choose another folder"
    )


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _self() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _owner(handle: int) -> str:
    text = os.pread(handle, 4096, 0).decode("utf-8", "replace").strip()
    try:
        owner = json.loads(text) if text else None
    except json.JSONDecodeError:
        return "a process it does not name"  # killed while writing its name
    if not isinstance(owner, dict):
        return ""
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('start')})"


def _write(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)
    os.fsync(handle)
