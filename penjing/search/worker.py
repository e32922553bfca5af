"""One process that carries out a study's trials until enough are finished."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from penjing.errors import LockedError, PenjingError
from penjing.events import Event, Listener, silent
from penjing.files import atomic_dir
from penjing.recipe.schema import Recipe
from penjing.recipe.store import hash_json
from penjing.search.study import Outcome, Study

Evaluate = Callable[[Recipe, Path, Listener], Outcome]


def work(
    folder: Path | str,
    *,
    evaluate: Evaluate | None = None,
    wait_seconds: float = 5.0,
    listen: Listener = silent,
) -> int:
    """Take trials from a study, one after the other, until enough are finished.

    A worker that finds nothing to take waits while others are at work, so that a trial whose worker dies is
    taken over.

    Args:
        folder: The study's folder, shared by all workers.
        evaluate: Carries out a trial; by default `carry_out`.
        wait_seconds: Seconds between looks while others work.
        listen: Hears all events.

    Returns:
        How many trials this worker finished.
    """
    study = Study(folder)
    if evaluate is None:
        evaluate = partial(carry_out, shared=study.folder / "shared")
    finished = 0
    while True:
        claim = study.claim()
        if claim is None:
            counts = study.counts()
            if counts["finished"] + counts["failed"] >= counts["wanted"]:
                return finished
            time.sleep(wait_seconds)
            continue
        listen(Event("run", "note", message=f"trial {claim.number}: {claim.values}"))
        try:
            study.finish(claim, evaluate(claim.recipe, claim.folder, listen))
        except PenjingError as error:
            study.finish(claim, None, str(error))
            listen(Event("run", "warning", message=f"trial {claim.number}: {error}"))
            continue
        finished += 1


def carry_out(recipe: Recipe, folder: Path, listen: Listener = silent, *, shared: Path) -> Outcome:
    """Run a recipe in its folder, or go on where a worker that died left it.

    The dense network, which all trials of a study have in common, is taken from ``shared`` where one of them
    has left it.
    """
    from penjing.recipe.run import run

    key = hash_json({name: recipe.to_dict()[name] for name in ("data", "model", "train", "seed")})[:16]
    ready = shared / key
    if ready.is_dir() and not (folder / "work").exists():
        (folder / "work" / "stages").mkdir(parents=True)
        shutil.copyfile(ready / "dense.safetensors", folder / "work" / "dense.safetensors")
        shutil.copyfile(ready / "train.json", folder / "work" / "stages" / "train.json")
    while True:
        try:
            result = run(recipe, folder, resume=True, listen=listen)
            break
        except LockedError:  # another worker drew the same recipe: wait for its result
            time.sleep(1.0)
    if not ready.exists():
        with atomic_dir(ready) as aside:
            shutil.copyfile(folder / "work" / "dense.safetensors", aside / "dense.safetensors")
            shutil.copyfile(folder / "work" / "stages" / "train.json", aside / "train.json")
    row = result.metrics.row(result.metrics.after)
    assert row is not None  # the run has measured it
    return Outcome(row.accuracy["val"].value, row.latency[0].median_ms, float(row.size_bytes))
