"""Seconds of a whole exported network in the runtime that will serve it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from penjing.files import temporary
from penjing.measure.latency import Candidate, latency, onnx_candidate
from penjing.prune.budget import Precision, Runtime

if TYPE_CHECKING:
    from penjing.export.inputs import Feeds

FORMATS: Mapping[Runtime, str] = {"onnxruntime": "onnx", "openvino": "openvino", "litert": "litert"}
"""The export format that each runtime serves."""

REFERENCE = "original"
"""Name of the unpruned network, which is timed in turns with everything else."""


def require(runtime: Runtime) -> None:
    """Raise `ExportError` with the install command if the package of a runtime is missing."""
    from penjing.export.base import get_format

    get_format(FORMATS[runtime]).require()


class WholeTimer:
    """Times networks beside the original: each call gives the original's seconds of that moment too.

    Int8 files are made without care for accuracy (ranges of noise, weights to nearest): their kernels are
    those of the file that will be delivered, unless that keeps layers in float. The original stays in fp32.

    Args:
        original: The unpruned network, written once.
        example_inputs: As it is called.
        batch: Samples in a call.
        threads: Threads of the runtime (OpenVINO and LiteRT use those they were opened with).
        runtime: Where files are timed.
        precision: Of the networks' files.
        num_runs: Timed runs of each file.
    """

    def __init__(
        self,
        original: nn.Module,
        example_inputs: Any,
        *,
        batch: int = 1,
        threads: int = 1,
        runtime: Runtime = "onnxruntime",
        precision: Precision = "fp32",
        num_runs: int = 200,
    ) -> None:
        self.example_inputs, self.batch, self.threads = example_inputs, batch, threads
        self.runtime, self.precision, self.num_runs = runtime, precision, num_runs
        files = ExitStack()
        self._folder = files.enter_context(temporary())
        weakref.finalize(self, files.close)
        self._original = original
        self._reference: Candidate | None = None
        self._count = 0

    def __call__(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Seconds of each network and, as `REFERENCE`, of the original; all in turns.

        `Latency.quiet_ms` stands for the median of a quiet machine: where other work runs beside, a long call
        is interrupted more often than a short one (on a crowded machine always), and their ratio is wrong.

        Raises:
            MeasureError: if a file cannot take this batch size.
            ExportError: if a network cannot be written for this runtime.
        """
        if self._reference is None:
            self._reference = self._candidate(self._original, "fp32")
        candidates = {name: self._candidate(model, self.precision) for name, model in models.items()}
        candidates[REFERENCE] = self._reference
        timed = latency(candidates, num_runs=self.num_runs, num_warmup=8, max_seconds=30.0)
        return {name: one.quiet_ms / 1e3 for name, one in timed.items()}

    def _candidate(self, model: nn.Module, precision: Precision) -> Candidate:
        from penjing.export import export_onnx, open_file
        from penjing.export.base import Source, get_format
        from penjing.export.inputs import as_feeds, input_names, resized

        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        path = export_onnx(model, folder / "model.onnx", self.example_inputs, dynamic_batch="auto")
        feeds = as_feeds(self.example_inputs, input_names(model, self.example_inputs))
        if precision == "int8":
            path = _to_int8(path, feeds)
        ready = resized(feeds, self.batch)
        if self.runtime == "onnxruntime":
            return onnx_candidate(path, batch=self.batch, threads=self.threads, feeds=ready)
        exporter = get_format(FORMATS[self.runtime])
        other = folder / exporter.filename
        exporter.write(
            Source(path, feeds, model=model, example_inputs=self.example_inputs, scratch=folder), other
        )
        runner = open_file(other)
        named = {entry.name: ready[entry.name] for entry in runner.inputs}
        return Candidate(lambda: runner.run(named), self.batch, self.threads, runner.runtime)


def _to_int8(path: Path, feeds: Feeds) -> Path:
    """The file with int8 kernels; what its numbers are does not matter."""
    from penjing.quantize import QuantizeConfig, quantize

    draw = np.random.default_rng(0)
    noise = {
        name: draw.standard_normal(each.shape).astype(each.dtype) if each.dtype.kind == "f" else each
        for name, each in feeds.items()
    }
    config = QuantizeConfig(
        observer="min_max",
        weights="absmax",
        rounding="nearest",
        equalize=False,
        bias_correction=False,
        samples=4,
        check_samples=1,
        min_agreement_db=-math.inf,
    )
    out = path.with_suffix(".int8.onnx")
    quantize(path, [noise], config, out=out, time_it=False)
    return out
