"""Quantization: a float network and calibration data in, a checked int8 ONNX file out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from penjing.errors import QuantizeError, at_stage
from penjing.events import Event, Listener, silent
from penjing.files import check_folder, staged, temporary
from penjing.manifest import admit
from penjing.quantize import mixed
from penjing.quantize.blocks import train_blocks
from penjing.quantize.config import QuantizeConfig
from penjing.quantize.feeds import rereadable
from penjing.quantize.job import Job
from penjing.quantize.linear_job import write_linears
from penjing.quantize.pack import refuse_overwriting
from penjing.quantize.result import QuantizeResult
from penjing.quantize.source import as_onnx
from penjing.quantize.student import QuantizedStudent, taught_job


@at_stage("quantize")
def quantize(
    model: nn.Module | Path | str,
    data: Iterable[Any],
    config: QuantizeConfig | Mapping[str, Any] | None = None,
    *,
    out: Path | str,
    example_inputs: Any = None,
    labels_metric: mixed.Metric | None = None,
    eval_data: Iterable[Any] | None = None,
    time_it: bool = True,
    seed: int = 0,
    listen: Listener = silent,
) -> QuantizeResult:
    """Write ``model`` as an int8 QDQ ONNX file that stock ONNX Runtime turns into int8 kernels.

    Activations are unsigned and asymmetric, weights signed and symmetric per output channel, biases int32;
    batch norms are folded and ReLU and clips absorbed. Ops without an int8 rule stay in float and are named
    in the result. Beside ``out``, ``<stem>.safetensors`` holds the same numbers.

    Args:
        model: A module (exported first), an fp32 ONNX file, or a `QuantizedStudent` after training, whose
            steps are written as they were learned.
        data: Batches: ``inputs``, ``(inputs, target)`` or a mapping, preprocessed as for the network. Of an
            iterator, as many as hold ``samples`` are kept.
        config: How, also as a dict; by default squared-error ranges, equalization and bias correction.
        out: The ONNX file to write; an artifact that it is put into lists it.
        example_inputs: What exports a module; by default the first batch.
        labels_metric: ``f(outputs, targets)`` of all samples, higher is better; by default top-1 accuracy.
            Where the data has no targets, None alone is allowed: agreement with fp32, of the largest output,
            or R² where the outputs are no scores of classes. Used with ``max_drop``.
        eval_data: Batches that ``max_drop`` is judged on; by default ``data``.
        time_it: Time the file against fp32 at the end, with one thread and one sample.
        seed: Of the draws that histograms are made from.
        listen: Hears progress.

    Raises:
        QuantizeError: for an ``out`` that would replace the source or other weights, unusable data, a graph
            without layers to quantize, or a file that disagrees with its own simulation. Files that were
            there before stay as they were then.
        RunError: for a folder that cannot be written.
    """
    start = time.perf_counter()
    out = Path(out)
    check_folder(out.parent)
    refuse_overwriting(out, model)
    listen(Event("quantize", "start", message=f"quantizing to {out.name}"))
    with temporary() as folder:
        if isinstance(model, QuantizedStudent):
            if config is not None:
                raise QuantizeError(
                    "a quantized student brings its own options", remedy="Give them to quantized_student"
                )
            job = taught_job(model, rereadable(data, model.frame.config.samples), seed, listen, folder)
        else:
            config = QuantizeConfig.of(config)
            data = rereadable(data, config.samples)
            fp32 = as_onnx(model, data, example_inputs, folder, config.dynamic_axes)
            job = Job(fp32, data, config, seed, listen)
            if job.config.mode == "static":
                job.calibrate()
            if job.config.rounding == "blocks":
                train_blocks(job, folder)
        config = job.config
        metrics = job.fall_back(labels_metric, eval_data) if config.max_drop is not None else None
        if config.sensitivity and not job.gains:
            job.measure_gains(job.placement.all_layers)
        with staged(out.parent, out.name) as aside:  # only what has been checked gets its place
            path = aside / out.name
            result = job.write(path) if config.mode == "static" else write_linears(job, path)
            timing = job.time(path) if time_it else None
    result = result.at(out)
    admit(out.parent, (out.name, result.weights_path.name))
    notes = list(result.notes)
    if timing is not None and not timing.pays:
        notes.append(
            f"int8 does not pay on this machine: {timing.int8_ms:.3f} ms, fp32 {timing.fp32_ms:.3f} ms; "
            "the float file is the faster one here"
        )
    for note in notes:
        listen(Event("quantize", "note", message=note))
    result = replace(result, timing=timing, notes=tuple(notes), seconds=time.perf_counter() - start)
    if metrics is not None:
        result = replace(result, metric_fp32=metrics[0], metric_int8=metrics[1], metric_samples=metrics[2])
    listen(
        Event(
            "quantize",
            "end",
            metrics={
                "sqnr_db": result.sqnr_db,
                "db_samples": float(result.db_samples),
                "size_bytes": float(result.size_bytes),
            },
        )
    )
    return result
