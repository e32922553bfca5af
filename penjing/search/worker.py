"""One process that carries out a study's trials until enough are finished."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from penjing.errors import LockedError, PenjingError, RunError, no_room
from penjing.events import Event, Listener, silent
from penjing.files import atomic_dir
from penjing.recipe.schema import Recipe
from penjing.recipe.store import hash_json
from penjing.search.study import Claim, Outcome, Study, exclusive

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

    Raises:
        PenjingError: before any trial is taken, where the data or the network cannot be opened here.
        RunError: where a trial's folder cannot be written here; the trial is left to another worker.
    """
    study = Study(folder)
    if evaluate is None:
        evaluate = partial(carry_out, shared=study.folder / "shared")
        _check_opens(study.config.recipe, study.folder)
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
        with claim.lease:
            finished += _tried(study, claim, evaluate, listen)


def _tried(study: Study, claim: Claim, evaluate: Evaluate, listen: Listener) -> bool:
    """Carry out a trial; whether it finished, or keeps an error of its own."""
    try:
        study.finish(claim, evaluate(claim.recipe, claim.folder, listen))
    except Exception as error:  # whatever it is, the next worker would meet it in the same trial
        if isinstance(error, RunError) or no_room(error):  # the next trial would meet it here, too
            raise
        said = str(error) if isinstance(error, PenjingError) else f"{type(error).__name__}: {error}"
        # before it is recorded: this raises an interrupt, if the error came of one
        listen(Event("run", "warning", message=f"trial {claim.number}: {said}"))
        study.finish(claim, None, said)
        return False
    return True


def _check_opens(recipe: Recipe, folder: Path) -> None:
    """A machine without the data, or in another working directory, would fail every trial it takes."""
    from penjing.recipe.workspace import Workspace

    space = Workspace(recipe, folder)
    space.original()
    space.feed.examples(1)


def carry_out(recipe: Recipe, folder: Path, listen: Listener = silent, *, shared: Path) -> Outcome:
    """Run a recipe in its folder, or go on where a worker that died left it.

    The dense network, which all trials of a study have in common, is taken from ``shared``: the first trial
    leaves it there, and others wait for it.
    """
    from penjing.recipe.run import run

    key = hash_json({name: recipe.to_dict()[name] for name in ("data", "model", "train", "seed")})[:16]
    ready, work = shared / key, folder / "work"
    shared.mkdir(parents=True, exist_ok=True)
    with ExitStack() as turn:
        turn.enter_context(exclusive(shared / f"{key}.lock"))

        def leave(event: Event) -> None:
            if event.stage == "run" and (work / "stages" / "train.json").exists():
                if not ready.exists():
                    _copy_dense(work, ready)
                turn.close()
            listen(event)

        if ready.exists():
            if not work.exists():
                _copy_dense(ready, work)
            turn.close()
        while True:
            try:
                result = run(recipe, folder, resume=True, listen=leave)
                break
            except LockedError:  # another worker drew the same recipe: wait for its result
                time.sleep(1.0)
    row = result.metrics.row(result.metrics.after)
    assert row is not None  # the run has measured it
    quality = row.accuracy["val"].value if row.metric is None else row.metric
    first = row.latency[0]
    alone = first.median_ms if first.quiet_ms is None else first.quiet_ms  # other trials run beside it
    return Outcome(quality, alone, float(row.size_bytes))


def _copy_dense(source: Path, target: Path) -> None:
    """Copy what the stage of the dense network leaves from one ``work`` folder to a new one."""
    with atomic_dir(target) as aside:
        (aside / "stages").mkdir()
        for name in ("dense.safetensors", "inputs.json", "stages/train.json"):
            shutil.copyfile(source / name, aside / name)
