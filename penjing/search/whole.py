"""Seconds of a whole exported network in the runtime that will serve it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from penjing.measure.latency import Candidate, latency, onnx_candidate
from penjing.prune.budget import Runtime

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

    Args:
        original: The unpruned network, written once.
        example_inputs: As it is called.
        batch: Samples in a call.
        threads: Threads of the runtime (OpenVINO and LiteRT use those they were opened with).
        runtime: Where files are timed.
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
        num_runs: int = 200,
    ) -> None:
        self.example_inputs, self.batch, self.threads = example_inputs, batch, threads
        self.runtime, self.num_runs = runtime, num_runs
        self._folder = tempfile.TemporaryDirectory(prefix="penjing-whole-")
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
            self._reference = self._candidate(self._original)
        candidates = {name: self._candidate(model) for name, model in models.items()}
        candidates[REFERENCE] = self._reference
        timed = latency(candidates, num_runs=self.num_runs, num_warmup=8, max_seconds=30.0)
        return {name: one.quiet_ms / 1e3 for name, one in timed.items()}

    def _candidate(self, model: nn.Module) -> Candidate:
        from penjing.export import export_onnx, open_file
        from penjing.export.base import Source, get_format
        from penjing.export.inputs import as_feeds, input_names, resized

        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        path = export_onnx(model, folder / "model.onnx", self.example_inputs, dynamic_batch="auto")
        feeds = as_feeds(self.example_inputs, input_names(model, self.example_inputs))
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
