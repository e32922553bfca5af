"""The numbers of the table, each measured on a file in ONNX Runtime. Only here is the test set read."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from penjing.events import Event, Listener
from penjing.export import export_onnx, open_file
from penjing.measure import count, latency, onnx_candidate, onnx_session, robustness, size_bytes
from penjing.measure.metric import score
from penjing.recipe.stages.base import Output, plain
from penjing.recipe.stages.exporting import has_int8
from penjing.recipe.stages.pruning import start_of_recovery
from penjing.recipe.stages.quality import cell_of, quality
from penjing.recipe.workspace import Workspace
from penjing.recover import RecoverConfig
from penjing.report.metrics import LatencyCell

_BEFORE = "dense"
_MOST_CHANGES = 12


@dataclass(frozen=True)
class Entry:
    """A row to measure: where its network comes from, and its file if a stage already wrote one.

    Attributes:
        key: Of the row.
        label: Of the row.
        model: Loads the network.
        file: Relative to the run folder; "" has it exported here.
        note: Of the row.
        shown: The file's name in the artifact, "" where it is not kept.
    """

    key: str
    label: str
    model: Callable[[Workspace], nn.Module]
    file: str = ""
    note: str = ""
    shown: str = ""


def entries(space: Workspace) -> tuple[Entry, ...]:
    """The rows of this run's table, in order."""
    recipe = space.recipe
    start = start_of_recovery(recipe.prune, "")
    rows = []
    if recipe.article is not None:
        note = _article_note(recipe.article)
        rows.append(Entry("article", "as the article trains it", lambda s: s.dense("article"), note=note))
    dense = "dense, trained properly" if recipe.train is not None else "dense, as given"
    rows.append(Entry("dense", dense, lambda s: s.dense()))
    rows.append(Entry("pruned", "pruned, before recovery", lambda s: s.student("pruned")))
    if start != "pruned":
        note = "layers refitted to the original's outputs on calibration data; no training"
        rows.append(Entry("refitted", "pruned and refitted", lambda s: s.student(start), note=note))
    rows.append(_served("recovered", "pruned and recovered", "model.onnx"))
    if has_int8(space):
        rows.append(_served("int8", "int8", "model.int8.onnx"))
    if recipe.baselines:
        rows.append(
            Entry(
                "random",
                "random pruning, same recovery",
                lambda s: s.student("recovered-random", "plan-random"),
                note="everything as above but the criterion",
            )
        )
        stages = "train, prune and recover" if recipe.train is not None else "prune and recover"
        note = f"the pruned widths, random weights, given the time of {stages} together; cut by the clock"
        rows.append(
            Entry("scratch", "same size, trained from scratch", lambda s: s.student("scratch"), note=note)
        )
    return tuple(rows)


def _served(key: str, label: str, name: str) -> Entry:
    """The recovered network in a file that the exporting stage wrote."""
    file = f"work/export/{name}"
    return Entry(key, label, lambda s: s.student("recovered"), file=file, shown=name)


def measure_rows(space: Workspace, listen: Listener) -> Output:
    """Measure every row: quality on each split, parameters, MACs, size of the file, latency in turns.

    Requires: all networks and files. Ensures: ``work/measured/*.onnx`` for rows without a file of their own.
    """
    config = space.recipe.measure
    chosen = entries(space)
    splits = [(name, config.max_train if name == "train" else None) for name in ("train", "val", "test")]
    splits = [(name, limit) for name, limit in splits if space.feed.has(name)]
    rows, paths, per_class = [], {}, {}
    total = len(chosen) * len(splits)
    for index, entry in enumerate(chosen):
        model = entry.model(space).eval()
        path = paths[entry.key] = _file_of(space, entry, model)
        cost = count(model, space.examples)
        del model
        gc.collect()
        session = onnx_session(path, threads=torch.get_num_threads())
        cells = {}
        for at, (name, limit) in enumerate(splits):
            message = f"{entry.label} on the {name} split"
            listen(Event("measure", "progress", index * len(splits) + at, total, "split", message=message))
            cells[name], measured = quality(space, session, space.rated(name, limit))
            if name == splits[-1][0] and measured is not None:
                per_class[entry.key] = measured
        metric = None
        if space.metric is not None:  # without classes the cells hold it already
            own = space.names_classes
            metric = score(space.metric, session, space.judged()) if own else cells["val"]["value"]
        rows.append(
            {
                "key": entry.key,
                "label": entry.label,
                "metric": metric,
                "note": entry.note,
                "accuracy": cells,
                "num_params": cost.num_params,
                "num_macs": cost.num_macs,
                "file": entry.shown,
                "size_bytes": size_bytes(path),
                "measured_on": _runtime(),
            }
        )
        del session
        gc.collect()
    result = {
        "rows": rows,
        "files": _accuracy_of_files(space, rows),
        "classes": _changed_classes(space, per_class) if per_class else [],
        "confusions": _changed_confusions(space, per_class),
        "robustness": _robustness(space, paths) if config.robustness and per_class else {},
    }
    listen(Event("measure", "progress", total, total, "split", message="latency, in turns"))
    return Output(result, {"latency": _latency(space, paths)}, _kept(space, paths))


def after_key(space: Workspace) -> str:
    """Key of the row that is delivered."""
    return "int8" if has_int8(space) else "recovered"


def _article_note(config: RecoverConfig) -> str:
    steps = "every step" if config.steps_per_epoch is None else f"{config.steps_per_epoch} optimizer step"
    plural = "s" if (config.steps_per_epoch or 1) > 1 else ""
    return f"{steps}{plural} an epoch, for {config.epochs} epoch{'s' if config.epochs != 1 else ''}"


def _file_of(space: Workspace, entry: Entry, model: nn.Module) -> Path:
    if entry.file:
        return space.folder / entry.file
    return export_onnx(
        model, space.work / "measured" / f"{entry.key}.onnx", space.examples, dynamic_batch="auto"
    )


def _kept(space: Workspace, paths: dict[str, Path]) -> tuple[str, ...]:
    return tuple(sorted(space.relative(path) for path in paths.values()))


def _runtime() -> str:
    import onnxruntime

    return f"the file in ONNX Runtime {onnxruntime.__version__}"


def _accuracy_of_files(space: Workspace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Test accuracy of every exported file in its own runtime (that of ONNX files is in their rows)."""
    known = {row["file"]: row["accuracy"].get("test") for row in rows if row["file"]}
    found = {}
    for file in space.result("export")["files"]:
        name = file["file"]
        if known.get(name):
            found[name] = known[name]
        elif space.feed.has("test"):
            runner = open_file(space.work / "export" / name)
            found[name], _ = quality(space, runner, space.rated("test"))
    return found


def _changed_classes(space: Workspace, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The classes that lost or gained most from the dense row to the delivered one."""
    old, new = measured[_BEFORE], measured[after_key(space)]
    names = space.bundle.classes
    changes: list[dict[str, Any]] = []
    for index in range(len(old.per_class)):
        n = int(old.confusion[index].sum())
        if n and old.per_class[index] != new.per_class[index]:
            name = names[index] if index < len(names) else str(index)
            changes.append(
                {
                    "name": name,
                    "n": n,
                    "before": float(old.per_class[index]),
                    "after": float(new.per_class[index]),
                }
            )
    changes.sort(key=lambda change: (-abs(change["after"] - change["before"]), change["name"]))
    return changes[:_MOST_CHANGES]


def _changed_confusions(space: Workspace, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs (label, answer) whose counts changed most, from the dense row to the delivered one."""
    if not measured:
        return []
    old, new = measured[_BEFORE], measured[after_key(space)]
    if old.confusion is None or new.confusion is None or old.confusion.shape != new.confusion.shape:
        return []
    change = np.abs(new.confusion - old.confusion)
    np.fill_diagonal(change, 0)
    names = space.bundle.classes
    found = []
    for at in np.argsort(-change, axis=None, kind="stable")[:_MOST_CHANGES]:
        label, guess = divmod(int(at), len(change))
        if change[label, guess]:
            pair = [names[index] if index < len(names) else str(index) for index in (label, guess)]
            counts = {"before": int(old.confusion[label, guess]), "after": int(new.confusion[label, guess])}
            found.append({"label": pair[0], "taken_for": pair[1], **counts})
    return found


def _latency(space: Workspace, paths: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """All files in turns, one batch size after the other, on real inputs."""
    config = space.recipe.measure
    out: dict[str, list[dict[str, Any]]] = {key: [] for key in paths}
    for batch in config.batches:
        inputs = space.feed.examples(batch)
        candidates = {
            key: onnx_candidate(path, batch=batch, threads=config.threads, feeds=_feeds(path, inputs, batch))
            for key, path in paths.items()
        }
        for key, timed in latency(candidates, num_runs=config.runs, max_seconds=60.0).items():
            cell = plain(timed)
            out[key].append({name: cell[name] for name in LatencyCell.model_fields})
        del candidates
        gc.collect()
    return out


def _feeds(path: Path, inputs: Any, batch: int) -> dict[str, Any]:
    """Inputs of the file by name, made up to the batch size where the data has fewer samples."""
    from penjing.export.inputs import as_feeds, resized

    session = onnx_session(path)
    return resized(as_feeds(inputs, [entry.name for entry in session.get_inputs()]), batch)


def _robustness(space: Workspace, paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
    out = {}
    for key in (_BEFORE, after_key(space)):
        session = onnx_session(paths[key], threads=torch.get_num_threads())
        which = "test" if space.feed.has("test") else "val"
        split = getattr(space.feed.bundle, which)
        found = robustness(
            session,
            split,
            batch_size=space.recipe.data.eval_batch_size,
            mean=space.feed.bundle.mean,
            std=space.feed.bundle.std,
            layout=space.feed.layout,
            seed=space.recipe.seed,
        )
        out[key] = {"clean": cell_of(found.clean)} | {
            name: cell_of(cell) for name, cell in found.corrupted.items()
        }
    return out
