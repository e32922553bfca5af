"""`run`: do a recipe's stages in a folder; what is finished is not done again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError, RecipeError, RunError, at_stage
from penjing.events import Event, Listener, silent
from penjing.files import check_folder, write_json
from penjing.log import JsonLog, tee
from penjing.manifest import json_if_any
from penjing.recipe.beforehand import check_words, check_work
from penjing.recipe.lock import run_lock
from penjing.recipe.refused import holds_work, is_untouched, leave_nothing, no_empty_folders
from penjing.recipe.result import RunResult
from penjing.recipe.schema import Recipe, first_difference
from penjing.recipe.stages.base import Stage
from penjing.recipe.store import Marker, stage_key
from penjing.recipe.workspace import Workspace
from penjing.report.metrics import Metrics

_FREE = ("baselines",)  # recipe entries that may change between sessions: they only add or drop stages


def run(
    recipe: Recipe,
    folder: Path | str,
    *,
    resume: bool = False,
    full: bool = False,
    given: Any = None,
    listen: Listener = silent,
) -> RunResult:
    """Do everything the recipe says, and leave an artifact in the folder.

    Every stage reads and writes files and leaves a marker with the hash of all it depended on, so a run that
    ended anywhere (in the middle of an epoch too) goes on from there to the same files. One that is refused
    before its first stage, or where no stage has done more than read the network, leaves nothing in a new
    folder.

    Args:
        recipe: What to do.
        folder: Where: new, or with ``resume`` one that this recipe has begun.
        resume: Go on in a folder that holds a run.
        full: Run the two baselines too, whatever the recipe says.
        given: A `penjing.recipe.workspace.Given` for recipes around Python objects.
        listen: Hears all events; they also go to ``log.jsonl`` in the folder.

    Returns:
        The folder and its numbers.

    Raises:
        ExportError: before anything is done, for a format that is unknown or whose package is missing.
        RecipeError: likewise, for an unknown augmentation, a baseline or measurement that the data does not
            allow, or a training that network or data does not allow.
        TraceError, PruneError: likewise, for a network that cannot be pruned so far.
        RunError: among several processes of torchrun; if the folder cannot be written, is in use, holds a
            run and ``resume`` was not asked for, or was begun with another recipe (naming the entry), other
            data or other weights.
        PenjingError: from a stage; ``completed`` lists the stages done before.
    """
    folder = Path(folder)
    _check_alone()
    check_folder(folder)
    check_words(recipe, folder)
    if full:
        recipe = recipe.model_copy(update={"baselines": True})
    _check_free(folder, resume)
    untouched = is_untouched(folder)
    with (
        no_empty_folders(folder),
        run_lock(folder) as taken_over,
        JsonLog(folder / "log.jsonl") as log,
    ):
        listen = tee(log, listen)
        try:
            if taken_over:
                listen(Event("run", "note", message=taken_over))
            if not _begun(folder):
                for name in ("recipe.yaml", "inputs.json"):
                    (folder / "work" / name).unlink(missing_ok=True)
            _warn_of_points(recipe, given, listen)
            _store_recipe(recipe, folder)
            space, stages = _checked(recipe, folder, given, listen)
        except BaseException:
            log.close()
            if untouched and not _begun(folder):
                leave_nothing(folder)
            raise
        try:
            skipped = _do(space, stages, listen)
        except PenjingError as error:
            if untouched and not holds_work(space):
                log.close()
                error.completed = ()
                leave_nothing(folder, read_only=True)
            raise
        return RunResult(folder, Metrics.read(folder), skipped)


def _check_alone() -> None:
    """Those that torchrun starts would take the folder from each other, and wait for each other in vain."""
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise RunError(
            f"a run is one process, and torchrun has started {os.environ['WORLD_SIZE']}",
            remedy="Start it without torchrun; what takes several is penjing recover, or a study's workers",
        )


def _check_inputs(space: Workspace, listen: Listener, *, finished: bool) -> None:
    """A run that goes on with other data or weights would be made of two halves; one that is finished needs
    neither, and test data may change until it is read.
    """
    path = space.work / "inputs.json"
    then = json_if_any(path)
    then = then if isinstance(then, dict) else {}
    put_back = f"Put it back as it was when {space.folder} was begun, or choose another folder"
    try:
        used, test = space.inputs(), space.test_inputs()
    except PenjingError as error:
        if not finished:
            error.remedy = put_back if then else error.remedy
            raise
        listen(Event("run", "note", message=f"finished, so not asked for any more: {error.cause}"))
        return
    held = used | test if space.store.read("measure") is not None else used
    changed = next((name for name, digest in held.items() if then.get(name, digest) != digest), None)
    if changed is not None:
        raise RunError(f"{changed} is not what it was when {space.folder} was begun", remedy=put_back)
    if used | test != then:
        write_json(path, used | test)


def _warn_of_points(recipe: Recipe, given: Any, listen: Listener) -> None:
    """A loss that was meant in points allows everything."""
    accuracy = recipe.metric is None and getattr(given, "metric", None) is None
    if accuracy and recipe.drop == "absolute" and recipe.max_drop is not None and recipe.max_drop >= 0.5:
        points = f"a loss of {100 * recipe.max_drop:g} points of accuracy is allowed"
        units = "one point is --max-drop 1 on the command line, 0.01 in Python and recipes"
        listen(Event("run", "warning", message=f"{points}; {units}"))


def _checked(recipe: Recipe, folder: Path, given: Any, listen: Listener) -> tuple[Workspace, Sequence[Stage]]:
    """The opened run and what it is going to do, when nothing speaks against it any more."""
    from penjing.recipe.stages import stages_of

    space = Workspace(recipe, folder, given)
    stages = stages_of(recipe)
    _check_inputs(space, listen, finished=_is_finished(space, stages, space.fingerprints))
    check_work(space)
    return space, stages


def _do(space: Workspace, stages: Sequence[Stage], listen: Listener) -> tuple[str, ...]:
    given_digests, total = space.fingerprints, len(stages)
    listen(Event("run", "start", 0, total, "stage", message=f"{space.recipe.name} in {space.folder}"))
    skipped: list[str] = []
    completed: list[str] = []
    digests = dict(given_digests)
    for index, stage in enumerate(stages):
        key = _key(stage, space.recipe.seed, given_digests, digests)
        marker = space.store.finished(stage.name, key)
        if marker is not None:
            skipped.append(stage.name)
            listen(Event("run", "progress", index + 1, total, "stage", message=f"{stage.name}: done before"))
        else:
            listen(Event(stage.name, "start", message=stage.title))
            started = time.perf_counter()
            space.store.remove(stage.name)
            try:
                with at_stage(stage.name), space.same_chance(stage.name):
                    output = stage.work(space, _renamed(stage.name, listen))
            except Exception as error:  # any: the log tells why a run ended
                if isinstance(error, PenjingError):
                    error.completed = tuple(completed)
                    listen(Event(stage.name, "error", message=str(error)))
                else:
                    listen(Event(stage.name, "error", message=f"{type(error).__name__}: {error}"))
                raise
            spent = _spent(output.timing, time.perf_counter() - started)
            marker = Marker(
                stage.name,
                key,
                output.result,
                {**output.timing, "stage_seconds": spent},
                space.store.hash_files(output.files),
            )
            space.store.write(marker)
            listen(Event(stage.name, "end", metrics={"seconds": spent}, message=stage.title))
            listen(Event("run", "progress", index + 1, total, "stage", message=f"{stage.name}: done"))
        shutil.rmtree(space.work / "checkpoints" / stage.name, ignore_errors=True)
        completed.append(stage.name)
        digests[stage.name] = marker.digest
    listen(Event("run", "end", total, total, "stage"))
    return tuple(skipped)


def _key(stage: Stage, seed: int, given: Mapping[str, str], digests: Mapping[str, str]) -> str:
    inputs = {name: digests[name] for name in (*given, *stage.requires)}
    return stage_key(stage.name, stage.config, seed, inputs)


def _is_finished(space: Workspace, stages: Sequence[Stage], given: Mapping[str, str]) -> bool:
    """Whether no stage remains to be done."""
    digests = dict(given)
    for stage in stages:
        marker = space.store.finished(stage.name, _key(stage, space.recipe.seed, given, digests))
        if marker is None:
            return False
        digests[stage.name] = marker.digest
    return True


def _spent(timing: Mapping[str, Any], seconds: float) -> float:
    """Seconds a stage took: of all sessions where its training remembers them, else of this one."""
    remembered = timing.get("seconds")
    return max(seconds, remembered) if isinstance(remembered, (int, float)) else seconds


def _renamed(stage: str, listen: Listener) -> Listener:
    """Events from inside come out under the stage's name; their own start and end become notes."""

    def heard(event: Event) -> None:
        kind = "note" if event.kind in ("start", "end") else event.kind
        if kind == "note" and not event.message and not event.metrics:
            return
        listen(replace(event, stage=stage, kind=kind))

    return heard


def _begun(folder: Path) -> bool:
    """Whether there is anything to go on with; a run that did not get so far holds nobody to its recipe."""
    work = folder / "work"
    return (folder / "recipe.yaml").exists() or any((*work.glob("stages/*"), *work.glob("checkpoints/*/*")))


def _check_free(folder: Path, resume: bool) -> None:
    begun = _begun(folder)
    if begun and not resume:
        raise RunError(
            f"{folder} already holds a run",
            remedy="Give --resume (resume=True) to go on with it, or choose another folder",
        )
    ours = begun or (folder / "work" / "lock.json").exists()
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise RunError(f"{folder} holds other files", remedy="Choose a new or empty folder")


def _store_recipe(recipe: Recipe, folder: Path) -> None:
    path = folder / "work" / "recipe.yaml"
    if path.exists():
        try:
            stored = Recipe.from_file(path).to_dict()
        except RecipeError as error:
            raise RunError(
                f"the recipe stored in {path} cannot be read ({error.cause})", remedy="Start anew"
            ) from error
        difference = first_difference(_fixed(stored), _fixed(recipe.to_dict()))
        if difference is not None:
            key, old, new = difference
            raise RunError(
                f"the recipe has changed since {folder} was begun: {key} was {old!r} and is now {new!r}",
                layer=key,
                remedy="Put the entry back, or choose another folder",
            )
    recipe.to_yaml(path)


def _fixed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _FREE}
