"""A study: many recipes, one folder, any number of processes on any number of machines.

Optuna chooses what to try and keeps what came out in an append-only journal. Everything that reads and writes
the journal happens under one file lock that ends with its process, however that ends. A trial belongs to
whoever holds its lease, again a file lock: when the lease of a running trial is free, its worker is gone, and
the same values are put back into the queue. So no kill loses a trial, and none is counted twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from pydantic import Field, ValidationError, model_validator

from penjing.config import Config
from penjing.errors import RecipeError, RunError
from penjing.files import release, unshared, unwritable, write_json
from penjing.log import drop_unfinished_line
from penjing.recipe.schema import Recipe
from penjing.recipe.store import hash_json
from penjing.search.space import Space

STUDY_FILE = "study.json"
"""What a study does, in its folder."""

_NAME = "penjing"
_DIRECTIONS = ("maximize", "minimize", "minimize")
_MOST_LOSSES = 10
"""Workers that may end during one trial before it is given up: it may be what ends them."""


class StudyConfig(Config):
    """What a study does.

    Attributes:
        recipe: The recipe that trials start from.
        space: What they vary.
        trials: Trials to finish.
        seed: Seeds the choice of trials.
    """

    recipe: Recipe
    space: Space = Space()
    trials: int = 20
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _every_trial_is_a_recipe(self) -> Self:
        """What no trial could carry out is said before workers meet it."""
        for values in self.space.corners():
            self.space.recipe(self.recipe, values)
        return self

    def tries_as(self, other: StudyConfig) -> bool:
        """Whether the trials of both are of one kind, however many they are."""
        return (self.recipe, self.space) == (other.recipe, other.space)

    def with_unsaid_of(self, old: StudyConfig) -> StudyConfig:
        """This, where it says nothing as the study that is there has it.

        Raises:
            RecipeError: if the space that stays does not fit the recipe.
        """
        said = {name: getattr(self, name) for name in self.model_fields_set}
        return StudyConfig.parse({name: getattr(old, name) for name in ("space", "trials", "seed")} | said)


@dataclass(frozen=True)
class Outcome:
    """What a trial is judged by; all of the delivered file.

    Attributes:
        accuracy: On the validation split; with a metric of the recipe's own, its value.
        latency: Milliseconds at the first batch size of the recipe, without other work that ran beside.
        size: Bytes on disk.
    """

    accuracy: float
    latency: float
    size: float


@dataclass(frozen=True)
class Claim:
    """A trial that this process has to carry out; the lease is held until `Study.finish`."""

    number: int
    values: dict[str, Any]
    recipe: Recipe
    folder: Path
    lease: IO[str]


class Study:
    """The folder of a study.

    Args:
        folder: A folder that `create` made.

    Raises:
        RunError: if it holds no study.
        RecipeError: without Optuna.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config = self._read()
        self._optuna = _optuna()
        with self._alone():
            self._storage = self._optuna.storages.JournalStorage(_backend(self._journal))
            self._study = self._optuna.create_study(
                storage=self._storage, study_name=_NAME, load_if_exists=True, directions=_DIRECTIONS
            )

    @classmethod
    def create(cls, folder: Path | str, config: StudyConfig) -> Study:
        """Make a study in a new folder, or go on with one of the same recipe and space. One in which no trial
        was begun holds nobody to its recipe. Where ``config`` does not say how many trials, which seed or
        which space, a study that is there keeps its own.

        Raises:
            RunError: if the folder holds another study, or other files.
            RecipeError: without Optuna.
        """
        folder = Path(folder)
        path = folder / STUDY_FILE
        _optuna()
        # looked at first: whoever is making the same study now writes its `study.json` before all else
        others = any(not one.name.startswith(".") for one in folder.glob("*"))
        if path.is_file():
            old = cls(folder)
            with old._alone():
                config = config.with_unsaid_of(old.config)
                if not old.config.tries_as(config) and old._study.get_trials(deepcopy=False):
                    raise RunError(
                        f"{folder} holds a study of another recipe or space", remedy="Choose another folder"
                    )
                write_json(path, config.to_dict())
        elif others:
            raise RunError(f"{folder} holds other files", remedy="Choose a new or empty folder")
        else:
            write_json(path, config.to_dict())
        return cls(folder)

    def claim(self) -> Claim | None:
        """The next trial for this process, or None if all that are needed are done or under way.

        Raises:
            RunError: if another study was made in the folder meanwhile, or it cannot be written.
        """
        with self._alone():
            now = self._read()
            if not now.tries_as(self.config):
                raise RunError(
                    f"{self.folder} holds a study of another recipe or space now",
                    remedy="Start the worker again",
                )
            self.config = now  # more trials may be wanted
            running = self._reap()
            if self._done() + running >= self.config.trials:
                return None
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=self.config.seed + len(self._study.get_trials(deepcopy=False)), n_startup_trials=10
            )
            trial = self._study.ask()
            lease = self._take_lease(trial.number)
            values = self.config.space.suggest(trial)
            recipe = self.config.space.recipe(self.config.recipe, values)
            name = hash_json(recipe.to_dict())[:16]
            trial.set_user_attr("folder", name)
            return Claim(trial.number, values, recipe, self.folder / "trials" / name, lease)

    def finish(self, claim: Claim, outcome: Outcome | None, error: str = "") -> None:
        """Record what came out, once; a trial that could not be carried out keeps its error."""
        states = self._optuna.trial.TrialState
        with self._alone():
            trial = self._study.get_trials(deepcopy=False)[claim.number]
            if trial.state == states.RUNNING:
                self._storage.set_trial_user_attr(trial._trial_id, "error", error)
                if outcome is None:
                    self._study.tell(claim.number, state=states.FAIL)
                else:
                    self._study.tell(claim.number, (outcome.accuracy, outcome.latency, outcome.size))
            release(claim.lease)

    def counts(self) -> dict[str, int]:
        """Trials finished, failed with an error, under way, and lost with a worker that is gone."""
        states = self._optuna.trial.TrialState
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
            running = [t.number for t in trials if t.state == states.RUNNING]
            left = sum(map(self._is_free, running))  # by workers that are gone
            return {
                "finished": sum(t.state == states.COMPLETE for t in trials),
                "failed": sum(_failed(t) for t in trials),
                "running": len(running) - left,
                "lost": left + sum(t.state == states.FAIL and not t.user_attrs.get("error") for t in trials),
                "wanted": self.config.trials,
            }

    def failures(self) -> list[dict[str, Any]]:
        """Every trial that could not be carried out: number, values, folder and error."""
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
        return [
            {
                "number": t.number,
                "values": dict(t.params),
                "folder": t.user_attrs.get("folder", ""),
                "error": t.user_attrs["error"],
            }
            for t in trials
            if _failed(t)
        ]

    def trials(self) -> list[dict[str, Any]]:
        """Every finished trial: number, values, folder, accuracy, latency, size, and whether it is on the
        front (no other one is at least as good in all three and better in one).
        """
        with self._alone():
            found = [t for t in self._study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
        rows = [
            {
                "number": t.number,
                "values": dict(t.params),
                "folder": t.user_attrs.get("folder", ""),
                "accuracy": t.values[0],
                "latency_ms": t.values[1],
                "size_bytes": t.values[2],
            }
            for t in found
        ]
        front = pareto([(-r["accuracy"], r["latency_ms"], r["size_bytes"]) for r in rows])
        return [{**row, "front": row_on} for row, row_on in zip(rows, front, strict=True)]

    def _read(self) -> StudyConfig:
        path = self.folder / STUDY_FILE
        try:
            return StudyConfig.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunError(
                f"{self.folder} holds no study ({path.name} cannot be read: {error.strerror or error})",
                remedy="Give the folder that `penjing study` made",
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise RunError(
                f"{path} is not what this version of penjing writes ({where}: {first['msg']})",
                remedy="Use the version that made the study, on every node, or choose another folder",
            ) from error

    @property
    def _journal(self) -> Path:
        return self.folder / "journal.log"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process touches the journal meanwhile; a line that a killed one left unfinished goes."""
        with exclusive(self.folder / "study.lock"):
            drop_unfinished_line(self._journal)
            yield

    def _take_lease(self, number: int) -> IO[str]:
        path = self.folder / "leases" / str(number)
        try:
            path.parent.mkdir(exist_ok=True)
            lease = unshared(open(path, "w"))  # noqa: SIM115 (held until the trial is finished)
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lease.write(f"{os.uname().nodename} {os.getpid()}\n")
            lease.flush()
        except OSError as error:
            raise unwritable(path, error) from error
        return lease

    def _reap(self) -> int:
        """Put the trials of dead workers back into the queue, give up those that outlive none; give how many
        are under way.
        """
        states = self._optuna.trial.TrialState
        trials = self._study.get_trials(deepcopy=False)
        again = {t.user_attrs.get("retry_of") for t in trials}
        alive = 0
        for trial in trials:
            if trial.state != states.RUNNING:
                continue
            if not self._is_free(trial.number):
                alive += 1
                continue
            losses = trial.user_attrs.get("losses", 0) + 1
            if losses == _MOST_LOSSES:
                error = (
                    f"{losses} workers ended while they carried it out; it may need more memory than there is"
                )
                self._storage.set_trial_user_attr(trial._trial_id, "error", error)
            elif trial.number not in again:  # first back into the queue, then off the list: a kill between
                queued = trial.system_attrs.get("fixed_params", {})  # of one that was lost before, too
                values = {**queued, **trial.params}
                marks = {"retry_of": trial.number, "losses": losses}
                self._study.enqueue_trial(values, user_attrs=marks)
            self._study.tell(trial.number, state=states.FAIL)
        return alive

    def _is_free(self, number: int) -> bool:
        path = self.folder / "leases" / str(number)
        if not path.exists():
            return True
        with open(path, "r+") as lease:  # NFS locks exclusively only what is open for writing
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _done(self) -> int:
        states = self._optuna.trial.TrialState
        return sum(t.state == states.COMPLETE or _failed(t) for t in self._study.get_trials(deepcopy=False))


def _failed(trial: Any) -> bool:
    """Whether a trial ended with an error of its own; one lost with its worker has none."""
    return trial.state.name == "FAIL" and bool(trial.user_attrs.get("error"))


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for a lock on a file, made if missing; it ends with its process, however that ends.

    Raises:
        RunError: if the file cannot be written or locked.
    """
    try:
        lock = unshared(open(path, "w"))  # noqa: SIM115 (closed below)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        release(lock)


def pareto(costs: Sequence[tuple[float, ...]]) -> list[bool]:
    """Which points no other point dominates; lower is better in every coordinate."""
    return [
        not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in costs)
        for one in costs
    ]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RecipeError(
            "a study needs Optuna", layer="study", remedy="Run: pip install 'penjing[cluster]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class _Held:
    """A lock for Optuna's journal that is held already: the study's own, which ends with its process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


def _backend(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend

    return JournalFileBackend(str(path), lock_obj=_Held())
