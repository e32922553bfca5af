"""The last stage: what was measured becomes ``metrics.json``, the page, and an artifact any process loads."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from penjing.artifact import load, save_artifact
from penjing.errors import VerifyError
from penjing.events import Event, Listener
from penjing.files import move_into
from penjing.manifest import MANIFEST_FILE, installed
from penjing.measure import device_name
from penjing.measure.metric import is_allowed, name_of
from penjing.measure.original import goes_by_original
from penjing.prune.compare import relative_error
from penjing.recipe.guard import drop_of
from penjing.recipe.schema import Recipe
from penjing.recipe.stages.base import Output
from penjing.recipe.stages.exporting import has_int8
from penjing.recipe.stages.measuring import after_key
from penjing.recipe.workspace import Workspace
from penjing.report import Metrics, text, write_report

_CURVES = {
    "article": "article",
    "train": "train",
    "recover": "recover",
    "recover-random": "random",
    "scratch": "scratch",
}
_PACKAGES = ("penjing", "torch", "onnx", "onnxruntime", "tensorflow-cpu", "tensorflow", "keras", "numpy")
_REPORT_FILES = ("report.html", "table.csv", "table.json")


def write_all(space: Workspace, listen: Listener) -> Output:
    """Assemble the artifact in the run folder.

    Requires: all other stages. Ensures: the artifact's files in the run folder, ``report.html`` and the
    tables among them; the artifact loads without the original code and answers as the recovered network does.

    Raises:
        VerifyError: if the loaded artifact answers otherwise.
    """
    student = space.student("recovered").eval()
    metrics = collect(space)
    staging = space.work / "artifact"
    pages = space.work / "report"
    pages.mkdir(parents=True, exist_ok=True)
    write_report(pages, metrics)
    files: dict[str, Path] = {name: pages / name for name in _REPORT_FILES}
    for file in space.result("export")["files"]:
        files[file["file"]] = space.work / "export" / file["file"]
    if has_int8(space):
        files["model.int8.safetensors"] = space.work / "int8" / "model.int8.safetensors"
    save_artifact(
        staging,
        student,
        example_inputs=space.examples,
        plan=space.plan(),
        recipe=space.recipe,
        metrics=metrics.to_dict(),
        files=files,
        stages=list(metrics.seconds),
        normalize=space.feed.normalize,
    )
    _check(staging, student, space.examples)
    moved = move_into(staging, space.folder, last=MANIFEST_FILE)
    staging.rmdir()
    listen(Event("report", "note", message=f"report: {space.folder / 'report.html'}"))
    return Output({"held": metrics.held}, files=tuple(moved))


def collect(space: Workspace) -> Metrics:
    """All that the stages reported, as one object."""
    recipe = space.recipe
    measured = space.store.read("measure")
    assert measured is not None  # the run has checked that it finished
    latency = measured.timing["latency"]
    rows = [{**row, "latency": latency.get(row["key"], [])} for row in measured.result["rows"]]
    pruned, verified = space.result("prune"), space.result("verify")
    after = after_key(space)
    values: dict[str, Any] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "rows": rows,
        "before": "dense",
        "after": after,
        "max_drop": recipe.max_drop,
        "drop": recipe.drop,
        "metric": "" if space.metric is None else name_of(space.metric),
        "held": _held(rows, after, recipe),
        "search": space.result("search") if recipe.search is not None else None,
        "sensitivity": pruned.get("sensitivity"),
        "latency": _latency_of(space),
        "curves": _curves(space),
        "widths": pruned["widths"],
        "frozen": pruned["frozen"],
        "quantized": _quantized(space),
        "checks": verified["checks"],
        "files": _files(space, verified["accuracy"], measured.result["files"]),
        "normalize": space.feed.normalize,
        "classes": measured.result["classes"],
        "confusions": measured.result.get("confusions", []),
        "robustness": measured.result["robustness"],
        "notes": _notes(space, pruned),
        "recipe": recipe.to_yaml(),
        "environment": environment(space),
        "seconds": _seconds(space),
    }
    return Metrics.parse(values)


def environment(space: Workspace) -> dict[str, str]:
    """What the numbers depend on outside the recipe."""
    found = {
        "CPU": device_name(),
        "cores": str(os.cpu_count()),
        "threads (training)": str(torch.get_num_threads()),
    }
    found["threads (latency)"] = str(space.recipe.measure.threads)
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["Python"] = platform.python_version()
    return found | installed(_PACKAGES)


def _held(rows: list[dict[str, Any]], after: str, recipe: Recipe) -> bool | None:
    """Whether the loss of the delivered file is allowed; None where nothing was asked."""
    if recipe.max_drop is None:
        return None
    val = {
        row["key"]: row["accuracy"]["val"]["value"] if row["metric"] is None else row["metric"]
        for row in rows
    }
    return is_allowed(drop_of(val["dense"], val[after], recipe.drop), recipe.max_drop)


def _latency_of(space: Workspace) -> dict[str, Any] | None:
    """What was measured on the way to a bounded latency."""
    marker = space.store.read("prune")
    return None if marker is None else marker.timing.get("latency")


def _curves(space: Workspace) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for stage, name in _CURVES.items():
        marker = space.store.read(stage)
        if marker is not None and marker.result.get("history"):
            found[name] = marker.result["history"]
    return found


def _quantized(space: Workspace) -> list[dict[str, Any]]:
    if not has_int8(space):
        return []
    return [
        {
            "name": layer["name"],
            "op": layer["op"],
            "sqnr_db": layer["output_db"] if layer["quantized"] else None,
            "kept_float": layer["why"],
        }
        for layer in space.result("quantize")["layers"]
    ]


def _files(space: Workspace, val: dict[str, Any], test: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for file in space.result("export")["files"]:
        cells = {"val": val.get(file["file"]), "test": test.get(file["file"])}
        out.append({**file, "accuracy": {name: cell for name, cell in cells.items() if cell}})
    return out


def _notes(space: Workspace, pruned: dict[str, Any]) -> list[str]:
    notes = []
    if not pruned["in_place"]:
        notes.append(f"The pruned network is the traced graph, not the original class: {pruned['reason']}")
    if pruned.get("evened"):  # a run of before has none
        notes.append(pruned["evened"])
    if pruned["after"]["params"] == pruned["before"]["params"]:
        notes.append("Nothing had to be removed: the original is within the budget")
    notes += space.result("train").get("notes", [])
    if goes_by_original(space.metric):
        name = name_of(space.metric)
        cause = "" if space.has_targets else "The data has no labels: "
        notes.append(f"{cause}{name} is {text.WHAT_IT_IS[name]}; the original has 1")
    marker = space.store.read("quantize")
    if marker is not None:
        notes += marker.timing.get("notes", [])
    notes += space.result("export").get("notes", [])  # a run of before has none
    return notes


def _seconds(space: Workspace) -> dict[str, float]:
    from penjing.recipe.stages import stages_of

    found = {}
    for stage in stages_of(space.recipe):
        marker = space.store.read(stage.name)
        if marker is not None and "stage_seconds" in marker.timing and stage.name != "report":
            found[stage.name] = marker.timing["stage_seconds"]
    return found


def _check(folder: Path, student: torch.nn.Module, examples: Any) -> None:
    from penjing.prune.compare import run

    error = relative_error(run(load(folder).eval(), examples), run(student, examples))
    if not error <= 1e-4:
        raise VerifyError(
            f"the artifact loaded from disk differs from the network by {error:.2e} (relative)",
            layer=str(folder),
            remedy="Do not deploy it; please report this with your recipe",
        )
