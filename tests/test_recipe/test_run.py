from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import penjing
from penjing.data import DataBundle
from penjing.errors import (
    ArtifactError,
    BudgetError,
    DataError,
    ExportError,
    PruneError,
    RecipeError,
    RecoverError,
    RunError,
)
from penjing.events import Event, silent
from penjing.export.saved_model import SavedModelExporter
from penjing.log import read_log
from penjing.measure import accuracy, onnx_session
from penjing.prune import Plan
from penjing.recipe import Recipe, RunResult
from penjing.recipe.run import _check_inputs, run
from penjing.recipe.stages import stages_of
from penjing.recipe.store import Store
from penjing.recipe.workspace import Workspace
from penjing.report import Metrics, Row

Finished = tuple[RunResult, list[Event], set[tuple[str, str]]]
NUM_CLASSES = 4


@pytest.fixture(scope="session")
def shapes_npz(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four classes of 8×8 images that a small network learns in seconds: a bright quadrant in noise."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "quadrants.npz"
    arrays = {}
    for split, count in (("train", 160), ("val", 60), ("test", 80)):
        labels = np.arange(count) % NUM_CLASSES
        images = rng.integers(0, 110, (count, 8, 8, 1))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 110
        arrays[f"x_{split}"] = images.astype(np.uint8)
        arrays[f"y_{split}"] = labels.astype(np.int64)
    np.savez(path, allow_pickle=False, **arrays)
    return path


@pytest.fixture(scope="session")
def tiny_values(shapes_npz: Path) -> Any:
    """A whole recipe that runs in seconds."""
    return {
        "name": "tiny",
        "seed": 3,
        "data": {"spec": str(shapes_npz), "batch_size": 32, "eval_batch_size": 40, "calibration": 64},
        "model": {
            "spec": "penjing:vgg_small",
            "options": {"widths": [8, 12], "convs": [1, 1], "hidden": [64, 64]},
        },
        "train": {"epochs": 3, "lr": 0.05},
        "prune": {"budget": {"params": 0.6}},
        "recover": {"epochs": 2, "lr": 0.02},
        "export": {"formats": ["onnx"], "batch_sizes": [1, 3]},
        "measure": {"runs": 3, "batches": [1, 4], "max_train": 50},
        "max_drop": 1.0,
    }


@pytest.fixture(scope="session")
def tiny_recipe(tiny_values: dict[str, Any]) -> Any:
    return Recipe.parse(tiny_values)


@pytest.fixture(scope="session")
def finished(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that nothing interrupted: its result, its events, and which stage read which split."""
    events: list[Event] = []
    reads: set[tuple[str, str]] = set()
    original = DataBundle.loader

    def spy(self: Any, which: str, *args: Any, **kwargs: Any) -> Any:
        reads.add((which, next((e.stage for e in reversed(events) if e.kind == "start"), "")))
        return original(self, which, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataBundle, "loader", spy)
        result = run(tiny_recipe, tmp_path_factory.mktemp("runs") / "whole", listen=events.append)
    return result, events, reads


# What depends on the clock; everything else repeats exactly.
CLOCKED = ("metrics.json", "report.html", "table.csv", "table.json", "manifest.json", "log.jsonl")


def contents(folder: Path) -> Any:
    """sha256 of everything in a run folder that must repeat."""
    store = Store(folder)
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name in CLOCKED or name.startswith("work/stages/") or name == "work/lock.json":
            continue
        out[name] = store.hash(path)
    return out


def numbers(folder: Path) -> Any:
    """All that the stages reported, without timings."""
    stages = folder / "work" / "stages"
    found = {path.stem: json.loads(path.read_text()) for path in sorted(stages.glob("*.json"))}
    return {name: (marker["key"], marker["result"]) for name, marker in found.items()}


def row_of(metrics: Metrics, key: str) -> Row:
    row = metrics.row(key)
    assert row is not None
    return row


def stop_at(predicate: Any) -> Any:
    """A listener that interrupts the run at the first event for which the predicate holds."""

    def listen(event: Any) -> None:
        if predicate(event):
            raise KeyboardInterrupt

    return listen


class TestFinishedRun:
    def test_artifact_is_whole(self, finished: Finished) -> None:
        folder = finished[0].folder
        names = ["model.safetensors", "plan.json", "model.onnx", "model.int8.onnx", "model.int8.safetensors"]
        names += ["recipe.yaml", "metrics.json", "report.html", "table.csv", "table.json", "log.jsonl"]
        assert [name for name in names if not (folder / name).is_file()] == []

    def test_budget_is_met(self, finished: Finished) -> None:
        metrics = finished[0].metrics
        dense, small, int8 = row_of(metrics, "dense"), row_of(metrics, "recovered"), row_of(metrics, "int8")
        assert 0.5 * dense.num_params < small.num_params <= 0.6 * dense.num_params
        assert int8.size_bytes < small.size_bytes < dense.size_bytes

    def test_network_learned(self, finished: Finished) -> None:
        metrics = finished[0].metrics
        assert row_of(metrics, "dense").accuracy["test"].value > 0.9
        assert row_of(metrics, "int8").accuracy["test"].value > 0.9
        assert metrics.held is True

    def test_numbers_are_those_of_the_files(self, finished: Finished, tiny_recipe: Recipe) -> None:
        result = finished[0]
        space = Workspace(tiny_recipe, result.folder)
        for key in ("recovered", "int8"):
            row = row_of(result.metrics, key)
            path = result.folder / row.file
            assert row.size_bytes == path.stat().st_size
            again = accuracy(onnx_session(path), space.feed.split("test"))
            assert (row.accuracy["test"].value, row.accuracy["test"].n) == (again.value, again.n)

    def test_loads_in_a_new_process_without_the_code(self, finished: Finished, tiny_recipe: Recipe) -> None:
        folder = finished[0].folder
        space = Workspace(tiny_recipe, folder)
        inputs = space.feed.examples(5)
        with torch.no_grad():
            expected = space.student("recovered").eval()(inputs)
        np.save(folder.parent / "inputs.npy", inputs.numpy())
        code = (
            "import sys, numpy as np, torch, penjing\n"
            "model = penjing.load(sys.argv[1]).eval()\n"
            "assert 'penjing.models.vgg' not in sys.modules\n"
            "np.save(sys.argv[3], model(torch.from_numpy(np.load(sys.argv[2]))).detach().numpy())\n"
        )
        out = folder.parent / "outputs.npy"
        arguments = [str(folder), str(folder.parent / "inputs.npy"), str(out)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
        torch.testing.assert_close(torch.from_numpy(np.load(out)), expected, rtol=1e-5, atol=1e-6)

    def test_plan_cuts_the_original_to_the_student(self, finished: Finished, tiny_recipe: Recipe) -> None:
        space = Workspace(tiny_recipe, finished[0].folder)
        plan = Plan.load(finished[0].folder / "plan.json")
        sliced = plan.slice_state(space.dense().state_dict())
        student = finished[0].model.state_dict()
        assert {k: v.shape for k, v in sliced.items()} == {k: v.shape for k, v in student.items()}

    def test_stored_recipe_is_the_recipe(self, finished: Finished, tiny_recipe: Recipe) -> None:
        assert Recipe.from_file(finished[0].folder / "recipe.yaml") == tiny_recipe

    def test_log_has_every_stage(self, finished: Finished, tiny_recipe: Recipe) -> None:
        lines = read_log(finished[0].folder / "log.jsonl")
        started = [line["stage"] for line in lines if line["kind"] == "start"]
        assert started == ["run", *(stage.name for stage in stages_of(tiny_recipe))]

    def test_checkpoints_are_gone(self, finished: Finished) -> None:
        left = finished[0].folder / "work" / "checkpoints"
        assert not left.exists() or not any(left.iterdir())

    def test_result_speaks(self, finished: Finished) -> None:
        result = finished[0]
        assert "parameters" in result.headline
        assert "<table>" in result._repr_html_()
        assert list(result.table["row"]) == ["dense", "pruned", "recovered", "int8"]
        json.dumps(result.to_dict(), allow_nan=False)


class TestResume:
    def test_finished_run_does_nothing_again(self, finished: Finished, tiny_recipe: Recipe) -> None:
        folder = finished[0].folder
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        again = run(tiny_recipe, folder, resume=True)
        after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        changed = {path.relative_to(folder).as_posix() for path in after if before.get(path) != after[path]}
        assert changed <= {"log.jsonl", "work/lock.json", "work/recipe.yaml"}
        assert again.skipped == tuple(stage.name for stage in stages_of(tiny_recipe))

    def test_finished_run_needs_no_data(
        self, finished: Finished, tiny_recipe: Recipe, shapes_npz: Path, tmp_path: Path
    ) -> None:
        folder, aside = tmp_path / "copy", shapes_npz.with_suffix(".aside")
        shutil.copytree(finished[0].folder, folder)
        shapes_npz.rename(aside)
        try:
            assert run(tiny_recipe, folder, resume=True).metrics == finished[0].metrics
            (folder / "report.html").unlink()  # now something remains to be done
            with pytest.raises(DataError):
                run(tiny_recipe, folder, resume=True)
        finally:
            aside.rename(shapes_npz)

    def test_interrupted_anywhere_ends_the_same(
        self, finished: Finished, tiny_recipe: Recipe, tmp_path: Path
    ) -> None:
        folder = tmp_path / "broken"
        moments = [
            lambda e: e.stage == "train" and e.metrics.get("epoch") == 2,
            lambda e: e.stage == "prune" and e.kind == "start",
            lambda e: e.stage == "recover" and e.metrics.get("epoch") == 1,
            lambda e: e.stage == "quantize" and e.kind == "note",
            lambda e: e.stage == "measure" and e.kind == "progress" and e.step > 3,
            lambda e: e.stage == "report" and e.kind == "note",
        ]
        for moment in moments:
            with pytest.raises(KeyboardInterrupt):
                run(tiny_recipe, folder, resume=True, listen=stop_at(moment))
        run(tiny_recipe, folder, resume=True)
        assert numbers(folder) == numbers(finished[0].folder)
        assert contents(folder) == contents(finished[0].folder)

    def test_damaged_output_is_made_again(
        self, finished: Finished, tiny_recipe: Recipe, tmp_path: Path
    ) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(finished[0].folder, folder)
        damaged = folder / "work" / "pruned.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-8] + b"\x00" * 8)
        again = run(tiny_recipe, folder, resume=True)
        assert "train" in again.skipped
        assert "prune" not in again.skipped
        assert "recover" in again.skipped  # what it reads is what it was
        assert contents(folder) == contents(finished[0].folder)

    @pytest.mark.slow
    def test_killed_at_random_moments(self, finished: Finished, tiny_recipe: Recipe, tmp_path: Path) -> None:
        folder, recipe = tmp_path / "killed", tmp_path / "recipe.yaml"
        tiny_recipe.to_yaml(recipe)
        command = [sys.executable, "-m", "penjing", "run", str(recipe), "--out", str(folder), "--resume"]
        rng = random.Random(0)
        for _ in range(20):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(1.0, 20.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert numbers(folder) == numbers(finished[0].folder)
        assert contents(folder) == contents(finished[0].folder)

    @pytest.mark.slow
    def test_twenty_runs_killed_give_one_artifact(
        self, finished: Finished, tiny_recipe: Recipe, tmp_path: Path
    ) -> None:
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["penjing.recipe.run", "penjing.recipe.stages", "penjing.export"])

        def start(folder: Path) -> Any:
            process = processes.Process(target=carry_on, args=(tiny_recipe.to_dict(), folder))
            process.start()
            return process

        def lasts(process: Any, timeout: float | None = None) -> float:
            began = time.monotonic()
            process.join(timeout)
            return time.monotonic() - began

        whole = lasts(start(tmp_path / "first"))
        rng, killed = random.Random(1), 0
        for index in range(20):
            folder = tmp_path / str(index)
            victim = start(folder)
            took = lasts(victim, rng.uniform(0.02, 0.95) * whole)
            victim.kill()
            victim.join()
            if victim.exitcode == -signal.SIGKILL:
                killed += 1
            else:
                whole = took  # the machine has more time for it than it had for the first
            heir = start(folder)
            heir.join()
            assert heir.exitcode == 0, index
            assert numbers(folder) == numbers(finished[0].folder), index
            assert contents(folder) == contents(finished[0].folder), index
            shutil.rmtree(folder)
        assert killed >= 10


def carry_on(recipe: dict[str, Any], folder: Path) -> None:
    """A run in a process of its own."""
    run(Recipe.parse(recipe), folder, resume=True)


class TestRefusals:
    def test_folder_with_a_run_needs_resume(self, finished: Finished, tiny_recipe: Recipe) -> None:
        with pytest.raises(RunError, match="already holds a run"):
            run(tiny_recipe, finished[0].folder)

    def test_several_processes_of_torchrun(
        self, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RunError, match=r"one process, and torchrun has started 2.*penjing recover"):
            run(tiny_recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_folder_with_other_files(self, tiny_recipe: Recipe, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(RunError, match="holds other files"):
            run(tiny_recipe, tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["mine.txt"]

    def test_a_run_that_never_began_binds_nobody(self, tiny_values: dict[str, Any], tmp_path: Path) -> None:
        for spec in ("nowhere.npz", "nowhere.parquet"):
            with pytest.raises(DataError, match="no such file"):
                run(Recipe.parse({**tiny_values, "data": {"spec": spec}}), tmp_path / "run")

    def test_changed_recipe_names_the_entry(self, finished: Finished, tiny_values: dict[str, Any]) -> None:
        changed = Recipe.parse({**tiny_values, "train": {"epochs": 4, "lr": 0.05}})
        with pytest.raises(RunError, match=r"train\.epochs was 3 and is now 4"):
            run(changed, finished[0].folder, resume=True)

    def test_changed_data_and_weights_are_named(
        self, tiny_values: dict[str, Any], shapes_npz: Path, tmp_path: Path
    ) -> None:
        data, weights = tmp_path / "data.npz", tmp_path / "net.safetensors"
        shutil.copyfile(shapes_npz, data)
        values = {**tiny_values, "data": {"spec": str(data)}, "train": None}
        recipe = Recipe.parse(values)
        save_file(Workspace(recipe, tmp_path).original().state_dict(), weights)
        recipe = Recipe.parse({**values, "model": {**values["model"], "weights": str(weights)}})
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run", listen=stop_at(lambda e: e.stage == "prune"))
        with np.load(shapes_npz) as arrays:
            relabelled = {**arrays, "y_train": arrays["y_train"][::-1]}
        np.savez(data, allow_pickle=False, **relabelled)
        with pytest.raises(RunError, match=r"the data .*data\.npz \(labels of train\) is not what it was"):
            run(recipe, tmp_path / "run", resume=True)
        shutil.copyfile(shapes_npz, data)
        save_file({name: 2 * value for name, value in load_file(weights).items()}, weights)
        with pytest.raises(RunError, match=r"net\.safetensors is not what it was"):
            run(recipe, tmp_path / "run", resume=True)

    def test_test_data_may_change_until_they_are_measured(
        self, finished: Finished, tiny_values: dict[str, Any], shapes_npz: Path, tmp_path: Path
    ) -> None:
        data, folder = tmp_path / "data.npz", tmp_path / "run"
        shutil.copyfile(shapes_npz, data)
        recipe = Recipe.parse({**tiny_values, "data": {**tiny_values["data"], "spec": str(data)}})
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder, listen=stop_at(lambda e: e.stage == "train"))
        with np.load(shapes_npz) as arrays:
            fewer = {key: value[:-4] if key.endswith("_test") else value for key, value in arrays.items()}
        np.savez(data, allow_pickle=False, **fewer)
        space = Workspace(recipe, folder)
        (space.work / "stages").mkdir(exist_ok=True)
        check_inputs = partial(_check_inputs, space, listen=silent, finished=False)
        check_inputs()
        shutil.copyfile(finished[0].folder / "work/stages/measure.json", folder / "work/stages/measure.json")
        check_inputs()
        shutil.copyfile(shapes_npz, data)
        del space.bundle
        with pytest.raises(RunError, match=r"\(labels of test\) is not what it was"):
            check_inputs()
        data.unlink()
        del space.bundle
        with pytest.raises(DataError, match=r"no such file.*Put it back as it was"):
            check_inputs()

    @pytest.mark.parametrize("parts", [("train", "val", "test"), ("train",)], ids=["apart", "split off"])
    def test_broken_image_is_said_before_training(
        self, tiny_values: dict[str, Any], tmp_path: Path, parts: tuple[str, ...]
    ) -> None:
        for split in parts:
            for index in range(40):
                file = tmp_path / "images" / split / f"class{index % 2}" / f"{index:02d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (16, 16), 5 * index).save(file)
        data = {"spec": str(tmp_path / "images"), "options": {"mean": 0.5, "std": 0.25, "val_fraction": 0.9}}
        recipe = Recipe.parse({**tiny_values, "data": data})
        file.write_bytes(file.read_bytes()[:45])
        with pytest.raises(DataError, match="cannot be decoded") as caught:
            run(recipe, tmp_path / "run")
        assert caught.value.layer == str(file)
        file.unlink()  # as the message says: nothing has been done, so nothing is held to be the same
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run", listen=stop_at(lambda e: e.stage == "train"))

    def test_misspelt_pattern_is_said_before_training(
        self, tiny_values: dict[str, Any], tmp_path: Path
    ) -> None:
        values = {**tiny_values, "prune": {"ratios": {"feature.*": 0.5}}}
        with pytest.raises(PruneError) as caught:
            run(Recipe.parse(values), tmp_path / "run")
        assert "matches no parameter" in str(caught.value)
        assert not (tmp_path / "run" / "work" / "dense.safetensors").exists()

    def test_missing_package_is_said_before_anything_is_done(
        self, tiny_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SavedModelExporter, "module", "no_such_tensorflow")
        values = {**tiny_values, "export": {"formats": ["onnx", "saved_model"]}}
        with pytest.raises(ExportError, match=r"penjing\[tf\]"):
            run(Recipe.parse(values), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_budget_out_of_reach_is_said_before_training(
        self, tiny_values: dict[str, Any], tmp_path: Path
    ) -> None:
        heard: list[Event] = []
        values = {**tiny_values, "prune": {"budget": {"params": 0.0001}}}
        with pytest.raises(BudgetError, match="out of reach"):
            run(Recipe.parse(values), tmp_path / "run", listen=heard.append)
        assert not [event for event in heard if event.stage == "train"]

    def test_the_log_tells_of_errors_that_nobody_foresaw(
        self, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise ZeroDivisionError("by nought")

        monkeypatch.setattr(Workspace, "save_weights", fail)
        values = {**tiny_recipe.to_dict(), "train": None}
        with pytest.raises(ZeroDivisionError):
            run(Recipe.parse(values), tmp_path / "run")
        last = read_log(tmp_path / "run" / "log.jsonl")[-1]
        assert (last["kind"], last["message"]) == ("error", "ZeroDivisionError: by nought")

    def test_failing_stage_lists_what_was_done(self, tiny_values: dict[str, Any], tmp_path: Path) -> None:
        train = {"epochs": 1, "lr": 1e30, "grad_clip": None, "schedule": "constant"}
        values = {**tiny_values, "train": train}
        with pytest.raises(RecoverError) as caught:
            run(Recipe.parse(values), tmp_path / "run")
        assert caught.value.completed == ()
        with pytest.raises(ArtifactError) as unknown:
            run(Recipe.parse({**tiny_values, "model": {"spec": "penjing:vgg_smal"}}), tmp_path / "other")
        assert "vgg_small" in str(unknown.value)


class TestHonesty:
    def test_test_split_is_read_by_the_measuring_stage_alone(self, finished: Finished) -> None:
        reads = finished[2]
        assert {stage for which, stage in reads if which == "test"} == {"measure"}
        assert {which for which, stage in reads if stage == "train"} == {"train", "val"}


class TestFull:
    def test_baselines_join_a_finished_run(
        self, finished: Finished, tiny_recipe: Recipe, tmp_path: Path
    ) -> None:
        folder = tmp_path / "full"
        shutil.copytree(finished[0].folder, folder)
        result = run(tiny_recipe, folder, resume=True, full=True)
        assert {"train", "prune", "recover", "export"} <= set(result.skipped)
        rows = {row.key: row for row in result.metrics.rows}
        assert {"random", "scratch"} <= rows.keys()
        assert rows["scratch"].num_params == rows["recovered"].num_params
        dense = rows["dense"].num_params
        assert rows["random"].num_params <= 0.6 * dense


def test_rounds_approach_the_budget_step_by_step(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    values = {**tiny_values, "quantize": None, "prune": {"budget": {"params": 0.36}, "steps": 2}}
    result = run(Recipe.parse(values), tmp_path / "rounds")
    markers = numbers(result.folder)
    before = markers["prune"][1]["before"]["params"]
    first, last = (markers[name][1]["after"]["params"] for name in ("prune-1", "prune"))
    assert first <= 0.6 * before
    assert 0.3 * before < last <= 0.36 * before < first
    assert row_of(result.metrics, "recovered").num_params == last
    assert isinstance(penjing.load(result.folder), torch.nn.Module)
    assert Path(result.folder / "plan.json").is_file()


def test_baselines_go_the_same_way(tiny_values: dict[str, Any]) -> None:
    """As many rounds and recoveries at random, and the time of all of them from scratch."""
    sparse = {"epochs": 1, "regularize": {"group_lasso": {"strength": 0.001}}}
    prune = {"budget": {"params": 0.36}, "steps": 2, "sparse": sparse}
    stages = stages_of(Recipe.parse({**tiny_values, "prune": prune, "baselines": True}))
    names = [stage.name for stage in stages]
    rounds = ["prune-1", "recover-1", "prune", "recover"]
    assert names[:6] == ["train", "sparse", *rounds]
    at = names.index("prune-random-1")
    assert names[at : at + 4] == ["prune-random-1", "recover-random-1", "prune-random", "recover-random"]
    own, random_ = ({s.name: s for s in stages}[name] for name in ("recover-1", "recover-random-1"))
    assert own.config == random_.config
    scratch = next(stage for stage in stages if stage.name == "scratch")
    assert scratch.requires == ("train", "sparse", *rounds)


@pytest.mark.slow
def test_random_rounds_run(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    values = {
        **tiny_values,
        "quantize": None,
        "prune": {"budget": {"params": 0.36}, "steps": 2},
        "recover": {"max_steps": 1},  # which does not bound what is bounded by the clock
        "train": {"epochs": 1, "max_steps": 2},
    }
    result = run(Recipe.parse(values), tmp_path / "rounds", full=True)
    markers = numbers(result.folder)
    last = {name: markers[name][1]["after"]["params"] for name in ("prune", "prune-random")}
    assert last["prune-random"] == pytest.approx(last["prune"], rel=0.1)
    assert markers["scratch"][1]["steps"] > 2


def test_what_the_data_cannot_show_is_said_first(tmp_path: Path) -> None:
    values = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(2)]
    classes = [(x, torch.zeros(len(x), dtype=torch.int64)) for x, _ in values]
    for data, options, said in (
        (values, {"baselines": True}, "the targets are no classes"),
        (classes, {"measure": {"robustness": True}}, "robustness corrupts images"),
    ):
        with pytest.raises(RecipeError, match=said) as caught:
            penjing.compress(
                torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)),
                (data, data),
                metric=(lambda outputs, targets: 0.5) if data is values else None,
                out=tmp_path / "run",
                options=options,
            )
        assert caught.value.completed == ()
        assert not (tmp_path / "run").exists()


RESIDUAL = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)

def build():
    blocks = [Block() for _ in range(4)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)]
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *blocks, *head)
"""


def test_the_weights_that_a_factory_draws_follow_from_the_seed(
    tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    """Of a factory that sets no seed, each process trained another network."""
    (tmp_path / "net.py").write_text(RESIDUAL)
    values = tiny_values | {"model": {"spec": f"{tmp_path / 'net.py'}:build"}}

    def drawn(seed: int) -> Any:
        torch.manual_seed(torch.seed())
        space = Workspace(Recipe.parse(values | {"seed": seed}), tmp_path / "run")
        return [weight.tolist() for weight in space.original().parameters()]

    assert drawn(3) == drawn(3) != drawn(4)


def test_branches_go_whole(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    """A shorter network goes through every stage, and its artifact loads without the class."""
    (tmp_path / "net.py").write_text(RESIDUAL, encoding="utf-8")
    values = {
        **tiny_values,
        "model": {"spec": f"{tmp_path / 'net.py'}:build"},
        "prune": {"budget": {"macs": 0.5}, "branches": 2, "criterion": "obs", "reconstruct": True},
    }
    result = run(Recipe.parse(values), tmp_path / "shorter")
    facts = numbers(result.folder)["prune"][1]
    plan = Plan.load(result.folder / "plan.json")
    assert [row["name"] for row in facts["widths"] if row["kind"] == "branch"] == list(plan.branches)
    assert len(plan.branches) == 2
    assert facts["after"]["macs"] <= 0.5 * facts["before"]["macs"]
    assert not facts["in_place"]
    loaded = penjing.load(result.folder)
    assert {k: tuple(v.shape) for k, v in loaded.state_dict().items()} == plan.new_shapes
