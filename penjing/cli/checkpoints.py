"""The checkpoint that a verb keeps beside what it is going to write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from penjing.errors import LockedError, RunError
from penjing.events import Event, Listener
from penjing.files import check_folder, write_json
from penjing.manifest import json_if_any
from penjing.recipe.lock import run_lock
from penjing.recipe.schema import first_difference
from penjing.recover.checkpoint import INDEX

_INPUTS = "inputs.json"


@contextmanager
def checkpoint_beside(out: Path, inputs: Mapping[str, Any], listen: Listener) -> Iterator[Path | None]:
    """Give the folder ``OUT.checkpoint`` for a training that ends with ``out`` being written.

    It stays where the work inside does not end, and is gone on with when the same is asked for again. Where
    nothing may be written beside ``out``, there is none.

    Args:
        out: The folder to be written.
        inputs: Plain data of what the training depends on, by what it is called.
        listen: Hears the notes.

    Raises:
        LockedError: while another process uses it.
        RunError: where it was begun with other inputs.
    """
    place = out.resolve()
    folder = place.with_name(f"{place.name}.checkpoint")
    try:
        check_folder(folder)
    except RunError as error:
        listen(Event("recover", "note", message=f"no checkpoint is kept: {error.cause}"))
        yield None
        return
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
    with ExitStack() as held:
        if first and (taken_over := _lock(folder, held)):
            listen(Event("recover", "note", message=taken_over))
        try:
            _check_inputs(folder, inputs)
            if first:
                write_json(folder / _INPUTS, inputs)
            yield folder
        except BaseException:
            if first and not (folder / INDEX).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if first:
            shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path, held: ExitStack) -> str:
    try:
        return held.enter_context(run_lock(folder))
    except LockedError:
        raise
    except RunError:  # a file system without locks
        return ""


def _check_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """A training that goes on with other data or networks would be made of two halves."""
    then = json_if_any(folder / _INPUTS) if (folder / INDEX).exists() else None
    if not isinstance(then, dict):
        return
    changed = first_difference(then, dict(inputs))
    if changed is not None:
        raise RunError(
            f"{changed[0]} is not what it was when the training in {folder} was interrupted",
            remedy="Put it back as it was to go on, or delete that folder to start again",
        )
