"""From the recovered network to files: int8, the export formats, and each file checked in its own runtime."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from penjing.events import Event, Listener
from penjing.export import export, open_file, verify
from penjing.export.base import get_format
from penjing.measure import accuracy
from penjing.quantize import QuantizeConfig, quantize
from penjing.recipe.schema import ExportConfig
from penjing.recipe.stages.base import Output, plain
from penjing.recipe.workspace import Workspace

INT8 = "onnx_int8"


def quantize_student(space: Workspace, listen: Listener) -> Output:
    """Bring the recovered network to int8.

    Requires: the plan and ``work/recovered.safetensors``. Ensures: ``work/int8/model.int8.onnx`` and its
        quantized
    weights ``work/int8/model.int8.safetensors``.
    """
    out = space.work / "int8" / "model.int8.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    made = quantize(
        space.student("recovered"),
        space.feed.calibration(),
        _allowed(space),
        out=out,
        example_inputs=space.examples,
        eval_data=space.feed.split("val"),
        seed=space.recipe.seed,
        listen=listen,
    )
    facts = plain(made)
    timing = {name: facts.pop(name, None) for name in ("seconds", "timing")}
    facts = {k: v for k, v in facts.items() if k not in ("path", "weights_path", "notes")}
    facts["layers"] = [plain(asdict(layer)) for layer in made.layers]
    timing["notes"] = list(made.notes)  # they may speak of milliseconds
    files = [made.path, made.weights_path]
    return Output(facts, timing, tuple(path.relative_to(space.folder).as_posix() for path in files))


def _allowed(space: Workspace) -> QuantizeConfig | None:
    """The quantization options, with what recovery has left of the allowed loss as its bound."""
    config, recipe = space.recipe.quantize, space.recipe
    if config is None or config.max_drop is None or recipe.search is None or space.metric is not None:
        return config
    found = space.result("search")
    chosen = found["trials"][found["chosen"] - 1]
    if not chosen["held"] or recipe.max_drop is None:
        return config
    left = max(0.0, recipe.max_drop - chosen["drop"])
    in_points = left * abs(found["original"]) if recipe.drop == "relative" else left
    return config.model_copy(update={"max_drop": min(1.0, in_points)})


def formats_of(config: ExportConfig, *, int8: bool) -> tuple[str, ...]:
    """The formats to write: the recipe's, and the int8 ONNX file where there is one."""
    return tuple(dict.fromkeys((*config.formats, *((INT8,) if int8 else ()))))


def export_student(space: Workspace, listen: Listener) -> Output:
    """Write every format.

    Requires: the plan, ``work/recovered.safetensors``, and the int8 file where there is one.
    Ensures: the files and folders of the formats in ``work/export``.
    """
    config, int8 = space.recipe.export, space.recipe.quantize is not None
    made = export(
        space.student("recovered"),
        space.work / "export",
        formats_of(config, int8=int8),
        example_inputs=space.examples,
        data=space.feed.calibration(),
        int8=space.work / "int8" / "model.int8.onnx" if int8 else None,
        opset=config.opset,
        batch_sizes=config.batch_sizes,
        listen=listen,
    )
    files, seconds = [], {}
    for file in made.files:
        files.append({"format": file.format, "file": file.path.name, "size_bytes": file.size_bytes})
        seconds[file.format] = file.seconds
    return Output(
        {"files": files},
        {"seconds": seconds},
        tuple(file.path.relative_to(space.folder).as_posix() for file in made.files),
    )


def verify_files(space: Workspace, listen: Listener) -> Output:
    """Open every file in its own runtime, compare it with the recovered network, and measure its accuracy.

    Requires: the exported files. Ensures: nothing on disk but its numbers; a file that disagrees stops the
        run.

    Raises:
        VerifyError: naming the file and the first op that differs.
    """
    reference = space.student("recovered").eval()
    inputs = space.feed.examples(max(space.recipe.export.batch_sizes))
    exported = space.result("export")["files"]
    checks: list[dict[str, Any]] = []
    accuracies: dict[str, Any] = {}
    latencies: dict[str, float] = {}
    for done, file in enumerate(exported):
        path = space.work / "export" / file["file"]
        listen(Event("verify", "progress", done, len(exported), "file", message=file["file"]))
        quantized = get_format(file["format"]).quantized
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
                    "max_abs_diff": plain(float(row.max_abs)),
                    "rel_diff": plain(float(row.relative)),
                    "against": "the recovered network in PyTorch (fp32)",
                    "ok": found.ok,
                }
            )
        accuracies[file["file"]] = cell_of(accuracy(open_file(path), space.feed.split("val")))
    listen(Event("verify", "progress", len(exported), len(exported), "file"))
    return Output({"checks": checks, "accuracy": accuracies}, {"latency_ms": latencies})


def cell_of(measured: Any) -> dict[str, Any]:
    """Value, n and interval of an accuracy, as plain JSON."""
    return {
        "value": float(measured.value),
        "n": int(measured.n),
        "low": float(measured.low),
        "high": float(measured.high),
    }


def relative(path: Path, folder: Path) -> str:
    """A path relative to the run folder, with forward slashes."""
    return path.relative_to(folder).as_posix()
