from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.cli import main
from penjing.errors import DataError, PruneError, RecipeError, RunError
from penjing.events import Event, Listener, silent
from penjing.recipe import Recipe
from penjing.search.space import Space
from penjing.search.study import Outcome, Study, StudyConfig, pareto
from penjing.search.worker import carry_out, work

pytest.importorskip("optuna", reason="studies need the extra `cluster`")

BASE = {
    "data": {"spec": "glyphs"},
    "model": {"spec": "penjing:mlp"},
    "prune": {"budget": {"macs": 0.5}},
    "recover": {"epochs": 1},
}


def config(trials: int) -> StudyConfig:
    return StudyConfig(recipe=Recipe.parse(BASE), trials=trials)


def made_up(recipe: Recipe, folder: Path, listen: Listener) -> Outcome:
    """Numbers that depend on the recipe alone."""
    assert recipe.prune.budget is not None
    left = recipe.prune.budget.macs or 1.0
    return Outcome(0.5 + 0.4 * left - (recipe.recover.lr - 0.02) ** 2, 10 * left, 1000 * left)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    costs = [(float(a), float(b)) for a, b in points]
    on = pareto(costs)
    for index, one in enumerate(costs):
        better = [o for o in costs if o[0] <= one[0] and o[1] <= one[1] and o != one]
        assert on[index] is not bool(better)
    assert not costs or any(on)


def test_one_worker(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", config(6))
    assert work(tmp_path / "s", evaluate=made_up) == 6
    assert study.claim() is None
    rows = study.trials()
    assert [row["number"] for row in rows] == list(range(6))
    assert any(row["front"] for row in rows)
    # More trials in the same folder go on from there; another space does not.
    Study.create(tmp_path / "s", config(8))
    assert work(tmp_path / "s", evaluate=made_up) == 2
    other = StudyConfig(recipe=Recipe.parse(BASE), space=Space(left=(0.3, 0.4)), trials=8)
    with pytest.raises(RunError, match="another recipe"):
        Study.create(tmp_path / "s", other)


def test_what_is_not_said_again_stays(tmp_path: Path) -> None:
    recipe = Recipe.parse(BASE)
    Study.create(tmp_path / "s", StudyConfig(recipe=recipe, trials=3, seed=7))
    for said in (
        StudyConfig(recipe=recipe),
        StudyConfig(recipe=recipe, trials=5),
        StudyConfig(recipe=recipe),
    ):
        study = Study.create(tmp_path / "s", said)
    assert (study.config.trials, study.config.seed) == (5, 7)
    assert Study.create(tmp_path / "new", StudyConfig(recipe=recipe)).config.trials == 20


def test_a_space_that_is_not_said_again_stays(tmp_path: Path) -> None:
    recipe, space = Recipe.parse(BASE), Space(left=(0.3, 0.4), quantize=(False,))
    study = Study.create(tmp_path / "s", StudyConfig(recipe=recipe, space=space))
    claim = study.claim()  # from here on another space is refused
    assert claim is not None
    claim.lease.close()
    assert Study.create(tmp_path / "s", StudyConfig(recipe=recipe, trials=5)).config.space == space
    with pytest.raises(RunError, match="another recipe or space"):
        Study.create(tmp_path / "s", StudyConfig(recipe=recipe, space=Space()))


def test_the_command_goes_on_without_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = importlib.import_module("penjing.cli.verbs.study")
    monkeypatch.setattr(verb, "_work", lambda folder, *_: work(folder, evaluate=made_up) > 0)
    Recipe.parse(BASE).to_yaml(tmp_path / "recipe.yaml")
    command = ["study", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "s"), "--trials"]
    for arguments in ([*command, "1", "--space", "left=[0.3, 0.4]"], [*command, "2"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert Study(tmp_path / "s").config.space == Space(left=(0.3, 0.4))


def test_the_command_says_how_far_its_workers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are silent themselves: a study of hours would show nothing."""
    verb = importlib.import_module("penjing.cli.verbs.study")
    study = Study.create(tmp_path / "s", config(2))
    heard: list[Event] = []

    class Worker:
        """A process that carries out one trial between two looks, and the last of them at the end."""

        returncode: int | None = None

        def __init__(self, *args: Any, **options: Any) -> None: ...

        def poll(self) -> int | None:
            return self.returncode

        def wait(self, timeout: float | None = None) -> int:
            claim = study.claim()
            if claim is None:
                self.returncode = 0
                return 0
            with claim.lease:
                study.finish(claim, Outcome(accuracy=0.9, latency=1.0, size=10.0))
            raise subprocess.TimeoutExpired("worker", 10)

        def terminate(self) -> None: ...

    monkeypatch.setattr(subprocess, "Popen", Worker)
    assert verb._work(tmp_path / "s", 1, heard.append)
    assert [(event.kind, event.step, event.total) for event in heard] == [
        ("start", 0, 2),
        ("progress", 1, 2),
        ("progress", 2, 2),
    ]


def test_a_trial_whose_worker_is_gone_is_done_by_another(tmp_path: Path) -> None:
    first = Study.create(tmp_path / "s", config(2))
    lost = first.claim()
    assert lost is not None
    second = Study(tmp_path / "s")
    other = second.claim()
    assert other is not None
    assert second.claim() is None  # two are under way, two are wanted
    assert second.counts() == {"finished": 0, "failed": 0, "running": 2, "lost": 0, "wanted": 2}
    lost.lease.close()  # what the system does when a process dies
    assert second.counts() == {"finished": 0, "failed": 0, "running": 1, "lost": 1, "wanted": 2}
    again = second.claim()
    assert again is not None
    assert again.values == lost.values
    assert again.folder == lost.folder
    # The one thought dead reports after all: it is not counted.
    first.finish(lost, Outcome(0.9, 1.0, 1.0))
    second.finish(again, Outcome(0.9, 1.0, 1.0))
    second.finish(other, Outcome(0.8, 1.0, 1.0))
    assert second.counts() == {"finished": 2, "failed": 0, "running": 0, "lost": 1, "wanted": 2}


def test_leases_are_looked_at_as_nfs_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS makes record locks of `flock`, and refuses an exclusive one on a file that is open for reading."""
    kernels = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        handle = file if isinstance(file, int) else file.fileno()
        if operation & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        kernels(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    study = Study.create(tmp_path, config(2))
    claim = study.claim()
    assert claim is not None
    assert study.counts()["running"] == 1
    claim.lease.close()  # its worker is gone
    assert work(tmp_path, evaluate=made_up) == 2
    assert study.counts()["lost"] == 1


def test_an_unfinished_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", config(3))
    claim = study.claim()
    assert claim is not None
    study.finish(claim, Outcome(0.5, 1.0, 1.0))
    with open(tmp_path / "s" / "journal.log", "a") as journal:
        journal.write('{"op_code": 4, "worker')
    assert work(tmp_path / "s", evaluate=made_up) == 2
    assert Study(tmp_path / "s").counts()["finished"] == 3


def test_a_trial_that_cannot_be_done_keeps_its_error(tmp_path: Path) -> None:
    def impossible(recipe: Recipe, folder: Path, listen: Listener) -> Outcome:
        raise PruneError("the budget is out of reach", remedy="Allow more")

    study = Study.create(tmp_path / "s", config(2))
    assert work(tmp_path / "s", evaluate=impossible) == 0
    assert study.counts()["failed"] == 2


def test_whatever_ends_a_trial_is_kept_as_its_error(tmp_path: Path) -> None:
    def broken(recipe: Recipe, folder: Path, listen: Listener) -> Outcome:
        raise RuntimeError("out of memory")

    study = Study.create(tmp_path / "s", config(2))
    assert work(tmp_path / "s", evaluate=broken) == 0
    assert [one["error"] for one in study.failures()] == ["RuntimeError: out of memory"] * 2


@pytest.mark.parametrize(
    "error",
    [
        RunError("cannot write s (No space left on device)", remedy="Choose another folder"),
        OSError(errno.ENOSPC, "No space left on device"),  # of a library
    ],
)
def test_a_full_disk_ends_the_worker_and_no_trial(error: Exception, tmp_path: Path) -> None:
    def full(recipe: Recipe, folder: Path, listen: Listener) -> Outcome:
        raise error

    study = Study.create(tmp_path / "s", config(2))
    with pytest.raises(type(error), match="No space left"):
        work(tmp_path / "s", evaluate=full)
    assert study.counts()["failed"] == 0
    assert work(tmp_path / "s", evaluate=made_up) == 2


def test_an_error_that_comes_of_an_interrupt_is_not_the_trials(tmp_path: Path) -> None:
    def killed(recipe: Recipe, folder: Path, listen: Listener) -> Outcome:
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    def interrupted(event: Event) -> None:
        if event.kind == "warning":  # where the interrupt that was swallowed is raised again
            raise KeyboardInterrupt

    study = Study.create(tmp_path / "s", config(1))
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "s", evaluate=killed, listen=interrupted)
    assert study.counts()["failed"] == 0


def test_a_worker_that_cannot_open_the_data_takes_no_trial(tmp_path: Path) -> None:
    recipe = Recipe.parse({**BASE, "data": {"spec": "not/mounted/here.npz"}})
    study = Study.create(tmp_path / "s", StudyConfig(recipe=recipe, trials=2))
    with pytest.raises(DataError, match="no such file"):
        work(tmp_path / "s")
    assert study.counts()["failed"] == 0


def test_values_outlive_a_worker_killed_before_it_took_them_over(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", config(1))
    lost = study.claim()
    assert lost is not None
    lost.lease.close()
    study._reap()  # the values are in the queue…
    study._study.ask()  # …and the process that asks for them dies before it reads any
    again = study.claim()
    assert again is not None
    again.lease.close()
    assert again.values == lost.values


def test_a_trial_that_no_worker_outlives_is_given_up(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", config(1))
    claims = []
    while (claim := study.claim()) is not None:
        claims.append(claim.values)
        claim.lease.close()
    assert len(claims) == 10
    assert all(values == claims[0] for values in claims)
    assert study.counts() == {"finished": 0, "failed": 1, "running": 0, "lost": 9, "wanted": 1}
    assert "10 workers ended" in study.failures()[0]["error"]


def test_the_study_says_why_trials_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = importlib.import_module("penjing.cli.verbs.study")

    def impossible(recipe: Recipe, folder: Path, listen: Listener) -> Outcome:
        raise PruneError("the budget is out of reach", remedy="Allow more")

    def local(folder: Path, workers: int, listen: Listener) -> bool:
        return work(folder, evaluate=impossible) == 0

    monkeypatch.setattr(verb, "_work", local)
    Recipe.parse(BASE).to_yaml(tmp_path / "recipe.yaml")
    arguments = ["study", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "s"), "--trials", "1"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().out
    assert "trial 0 failed: prune: the budget is out of reach" in said
    assert "The front" not in said  # there is none


def test_the_dense_network_is_trained_once_by_workers_that_begin_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    row = SimpleNamespace(
        metric=0.7,
        accuracy={"val": SimpleNamespace(value=0.9)},
        latency=[SimpleNamespace(median_ms=1.4, quiet_ms=1.0)],  # other trials ran beside
        size_bytes=10,
    )

    def pretend(recipe: Recipe, folder: Path, *, resume: bool, listen: Listener) -> Any:
        stages = folder / "work" / "stages"
        if not (stages / "train.json").exists():
            time.sleep(0.2)
            trained.append(folder.name)
            stages.mkdir(parents=True)
            for path in ("work/dense.safetensors", "work/inputs.json", "work/stages/train.json"):
                (folder / path).write_text("{}")
        listen(Event("run", "progress", 1, 2, "stage"))
        return SimpleNamespace(metrics=SimpleNamespace(after="int8", row=lambda key: row))

    monkeypatch.setattr(importlib.import_module("penjing.recipe.run"), "run", pretend)

    def one(name: str) -> Outcome:
        return carry_out(Recipe.parse(BASE), tmp_path / name, shared=tmp_path / "shared")

    with ThreadPoolExecutor(4) as workers:
        found = set(workers.map(one, "abcd"))
    assert found == {Outcome(0.7, 1.0, 10.0)}  # by the recipe's own metric, where it has one
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("space", "cause"),
    [
        ({"left": [0.5, 0.2]}, "left goes from 0.5 to 0.2"),
        ({"left": [0.2, 1.5]}, "it is a share"),
        ({"lr": [0, 0.1]}, "lr goes from 0 to 0.1"),
        ({"criterion": ["magnitud"]}, "unknown criterion 'magnitud'"),
        ({"scop": ["global"]}, "scope"),
    ],
)
def test_spaces_that_no_trial_could_carry_out(space: dict[str, Any], cause: str) -> None:
    with pytest.raises(RecipeError, match=cause):
        StudyConfig(recipe=Recipe.parse(BASE), space=Space.parse(space))


def test_a_trial_keeps_what_the_space_leaves_open() -> None:
    prune = {"budget": {"macs": 0.5}, "branches": 2, "reconstruct": {"block_steps": 30}}
    space = Space(reconstruct=(True,))
    trial = space.recipe(Recipe.parse({**BASE, "prune": prune}), next(space.corners()))
    assert trial.prune.branches == 2
    assert trial.prune.reconstruct == {"block_steps": 30}


def test_wrong_studies(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no study"):
        Study(tmp_path)
    (tmp_path / "photo.png").touch()
    with pytest.raises(RunError, match="holds other files"):
        Study.create(tmp_path, config(1))
    assert [one.name for one in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"recipe": {', "the file: Invalid JSON"),
        ("", "the file: Invalid JSON"),
        (None, "unknown key 'tries'"),
    ],
)
def test_a_study_of_another_version_says_what_is_not_known(
    text: str | None, said: str, tmp_path: Path
) -> None:
    """On a node with an older penjing it was said to be no study at all."""
    Study.create(tmp_path, config(2))
    path = tmp_path / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tries": 3}) if text is None else text)
    with pytest.raises(RunError, match=f"this version of penjing writes.*{said}"):
        Study(tmp_path)


def test_a_study_without_a_trial_holds_nobody_to_its_recipe(tmp_path: Path) -> None:
    """Its workers may have said that the data is not there."""
    late = Study.create(tmp_path / "s", config(2))
    mended = StudyConfig(recipe=Recipe.parse({**BASE, "data": {"spec": "photos"}}), trials=1)
    study = Study.create(tmp_path / "s", mended)
    with pytest.raises(RunError, match=r"another recipe or space now\. Start the worker again"):
        late.claim()
    claim = study.claim()
    assert claim is not None
    with claim.lease, pytest.raises(RunError, match="another recipe or space"):
        Study.create(tmp_path / "s", config(2))
    assert claim.recipe.data.spec == "photos"


def test_a_worker_goes_on_when_more_trials_are_wanted(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", config(1))
    first = study.claim()
    assert first is not None
    assert study.claim() is None
    Study.create(tmp_path / "s", config(2))
    second = study.claim()
    assert second is not None
    with first.lease, second.lease:
        assert (first.number, second.number) == (0, 1)


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_study import made_up
from penjing.search.worker import work

def slow(recipe, folder, listen):
    time.sleep(0.4)
    with open(Path(sys.argv[1]) / "carried_out.txt", "a") as file:
        file.write(folder.name + "\\n")
    return made_up(recipe, folder, listen)

work(sys.argv[1], evaluate=slow, wait_seconds=0.2)
"""


@pytest.mark.slow
def test_eight_workers_three_killed(tmp_path: Path) -> None:
    folder, wanted = tmp_path / "s", 40
    Study.create(folder, config(wanted))
    here = str(Path(__file__).parent)
    start = [sys.executable, "-c", WORKER, str(folder), here]
    workers = [subprocess.Popen(start) for _ in range(8)]
    study = Study(folder)
    for victim in workers[:3]:
        while study.counts()["finished"] < 3 + 3 * workers.index(victim):
            time.sleep(0.2)
        os.kill(victim.pid, signal.SIGKILL)
    for process in workers:
        process.wait(timeout=240)
    assert [p.returncode for p in workers] == [-signal.SIGKILL] * 3 + [0] * 5
    counts = study.counts()
    assert counts["finished"] == wanted
    assert counts["running"] == counts["failed"] == 0
    assert counts["lost"] <= 3
    rows = study.trials()
    assert len({row["number"] for row in rows}) == wanted
    carried = (folder / "carried_out.txt").read_text().split()
    assert wanted <= len(carried) <= wanted + 3


@pytest.mark.slow
def test_real_trials_share_the_dense_network(tmp_path: Path) -> None:
    base = {
        "data": {"spec": "glyphs", "options": {"num_classes": 4}, "calibration": 64},
        "model": {"spec": "penjing:mlp", "options": {"hidden": [32, 32]}},
        "train": {"epochs": 1, "lr": 0.05},
        "prune": {"budget": {"macs": 0.5}},
        "recover": {"epochs": 1},
        "export": {"formats": ["onnx"]},
        "measure": {"batches": [1], "runs": 3},
    }
    recipe = Recipe.parse(json.loads(json.dumps(base)))
    shared = tmp_path / "shared"
    first = carry_out(recipe, tmp_path / "a", silent, shared=shared)
    assert len([path for path in shared.iterdir() if path.is_dir()]) == 1
    smaller = Space().recipe(
        recipe,
        {
            "left": 0.3,
            "criterion": "magnitude",
            "scope": "global",
            "reconstruct": False,
            "lr": 0.01,
            "quantize": True,
        },
    )
    second = carry_out(smaller, tmp_path / "b", silent, shared=shared)
    assert second.size < first.size
    log = (tmp_path / "b" / "log.jsonl").read_text()
    assert "train: done before" in log
