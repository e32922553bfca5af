"""From the recovered network to files: int8, the export formats, and each file checked in its own runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from penjing.errors import Int8LossError
from penjing.events import Event, Listener
from penjing.export import export, open_file, verify
from penjing.export.base import get_format
from penjing.measure.metric import is_allowed, on_arrays
from penjing.models.onnx_door import OnnxModel
from penjing.quantize import QuantizeConfig, QuantizeResult, quantize
from penjing.quantize.student import quantized_student
from penjing.recipe.guard import drop_of
from penjing.recipe.schema import ExportConfig
from penjing.recipe.stages.base import Output, plain
from penjing.recipe.stages.quality import quality
from penjing.recipe.stages.searching import judge
from penjing.recipe.workspace import Workspace
from penjing.recover import recover

INT8 = "onnx_int8"
_FROM_INT8 = (INT8, "saved_model_int8")
"""Formats made from the int8 file."""


def quantize_student(space: Workspace, listen: Listener) -> Output:
    """Bring the recovered network to int8.

    Requires: the plan and ``work/recovered.safetensors``, with training in int8 ``work/dense.safetensors``.
    Ensures: ``work/int8/model.int8.onnx`` and its quantized weights ``work/int8/model.int8.safetensors``; or,
        where no int8 file stays within the allowed loss and the recipe accepts that, the reason alone.
    """
    assert space.recipe.quantize is not None
    out = space.work / "int8" / "model.int8.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = _to_int8(space, out, listen)
    except Int8LossError as error:
        if space.recipe.quantize.fallback == "error":
            raise
        note = f"delivered in float, without an int8 file: {error.cause}"
        listen(Event("quantize", "note", message=note))
        return Output({"layers": [], "left_out": error.cause}, {"notes": [note]})
    facts = plain(made)
    timing = {name: facts.pop(name, None) for name in ("seconds", "timing")}
    facts = {k: v for k, v in facts.items() if k not in ("path", "weights_path", "notes")}
    timing["notes"] = list(made.notes)  # they may speak of milliseconds
    files = [made.path, made.weights_path]
    return Output(facts, timing, tuple(space.relative(path) for path in files))


def has_int8(space: Workspace) -> bool:
    """Whether the run has an int8 file to deliver."""
    return space.recipe.quantize is not None and "left_out" not in space.result("quantize")


def _taught(space: Workspace) -> bool:
    """Whether the int8 file was trained."""
    return space.recipe.quantize is not None and space.recipe.quantize.qat is not None


def _to_int8(space: Workspace, out: Path, listen: Listener) -> QuantizeResult:
    """Quantize after training, and where the recipe says so train on in int8 before the file is written."""
    stage, config, recipe = space.recipe.quantize, _allowed(space), space.recipe
    assert stage is not None
    model, data = space.student("recovered"), space.feed.calibration()
    common: dict[str, Any] = {"example_inputs": space.examples, "seed": recipe.seed, "listen": listen}
    judge = None if space.metric is None else on_arrays(space.metric)
    rest: dict[str, Any] = {
        "out": out,
        "eval_data": space.judged(),
        "labels_metric": judge,
        **common,
    }
    if stage.qat is None:
        return quantize(model, data, config, **rest)
    trained = recover(
        quantized_student(model, data, config, **common),
        space.dense(),
        space.feed.train(),
        stage.qat,
        val=space.rated("val"),
        metric=space.recovery_metric,
        checkpoint=space.work / "checkpoints" / "quantize",
        seed=recipe.seed,
        listen=listen,
    )
    return quantize(trained.model, data, **rest)


def _allowed(space: Workspace) -> QuantizeConfig:
    """The quantization options, bounded by what recovery has left of the recipe's allowed loss, too.

    Where recovery has lost more than is allowed, int8 may lose as much again: it is not to blame.
    """
    recipe, stage = space.recipe, space.recipe.quantize
    assert stage is not None
    config = stage.alone()
    if recipe.max_drop is None or config.mode != "static" or stage.qat is not None:
        return config
    if recipe.search is not None:
        found = space.result("search")
        original, drop = found["original"], found["trials"][found["chosen"] - 1]["drop"]
    else:
        original = judge(space, space.dense())
        drop = drop_of(original, judge(space, space.student("recovered")), recipe.drop)
    left = recipe.max_drop - drop if is_allowed(drop, recipe.max_drop) else recipe.max_drop
    in_points = max(0.0, left) * (abs(original) if recipe.drop == "relative" else 1.0)
    own = 1.0 if config.max_drop is None else config.max_drop
    return config.model_copy(update={"max_drop": min(own, in_points)})


def formats_of(config: ExportConfig, *, int8: bool) -> tuple[str, ...]:
    """The formats to write: the recipe's, and the int8 ONNX file where there is one."""
    return tuple(dict.fromkeys((*config.formats, *((INT8,) if int8 else ()))))


def export_student(space: Workspace, listen: Listener) -> Output:
    """Write every format.

    Requires: the plan, ``work/recovered.safetensors``, and the int8 file where there is one.
    Ensures: the files and folders of the formats in ``work/export``.
    """
    config, int8 = space.recipe.export, has_int8(space)
    written = space.work / "int8" / "model.int8.onnx" if int8 else None
    formats = formats_of(config, int8=int8)
    parts: list[tuple[Any, tuple[str, ...], Path | None]] = [(space.student("recovered"), formats, written)]
    if _taught(space) and written is not None:
        # What was trained in int8 is compared with itself: it went on learning, away from the float network.
        floats = tuple(name for name in formats if name not in _FROM_INT8)
        ints = tuple(name for name in formats if name in _FROM_INT8)
        parts = [(space.student("recovered"), floats, None), (written, ints, written)]
    made = [
        file
        for model, names, int8_file in parts
        if names
        for file in export(
            model,
            space.work / "export",
            names,
            example_inputs=space.examples,
            data=space.feed.calibration(),
            int8=int8_file,
            dynamic_axes=config.dynamic_axes if isinstance(model, nn.Module) else None,
            opset=config.opset,
            batch_sizes=config.batch_sizes,
            listen=listen,
        ).files
    ]
    files, seconds, told = [], {}, dict[str, list[str]]()
    for file in made:
        files.append({"format": file.format, "file": file.path.name, "size_bytes": file.size_bytes})
        seconds[file.format] = file.seconds
        for note in file.notes:
            told.setdefault(note, []).append(file.path.name)
    return Output(
        {"files": files, "notes": [f"{', '.join(names)}: {note}" for note, names in told.items()]},
        {"seconds": seconds},
        tuple(space.relative(file.path) for file in made),
    )


def verify_files(space: Workspace, listen: Listener) -> Output:
    """Open every file in its own runtime, compare it with its network, and measure how good it is.

    Requires: the exported files. Ensures: nothing on disk but its numbers; a file that disagrees stops the
        run.

    Raises:
        VerifyError: naming the file and the first op that differs.
    """
    recovered = space.student("recovered").eval()
    inputs = space.feed.examples(max(space.recipe.export.batch_sizes))
    exported = space.result("export")["files"]
    checks: list[dict[str, Any]] = []
    accuracies: dict[str, Any] = {}
    latencies: dict[str, float] = {}
    for done, file in enumerate(exported):
        path = space.work / "export" / file["file"]
        listen(Event("verify", "progress", done, len(exported), "file", message=file["file"]))
        quantized = get_format(file["format"]).quantized
        reference, against = recovered, "the recovered network in PyTorch (fp32)"
        if file["format"] in _FROM_INT8 and _taught(space):
            trained = space.work / "int8" / "model.int8.onnx"
            reference, against = OnnxModel(trained).eval(), "the network trained in int8, in PyTorch"
        found = verify(
            path, reference, inputs, batch_sizes=space.recipe.export.batch_sizes, quantized=quantized
        )
        latencies[file["file"]] = found.latency_ms
        for row in found.rows:
            checks.append(
                {
                    "file": file["file"],
                    "format": file["format"],
                    "runtime": found.runtime,
                    "batch": row.batch,
                    "free": row.free,
                    "max_abs_diff": plain(float(row.max_abs)),
                    "rel_diff": plain(float(row.relative)),
                    "against": against,
                    "ok": found.ok,
                }
            )
        accuracies[file["file"]], _ = quality(space, open_file(path), space.rated("val"))
    listen(Event("verify", "progress", len(exported), len(exported), "file"))
    return Output({"checks": checks, "accuracy": accuracies}, {"latency_ms": latencies})
