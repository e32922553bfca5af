"""`export`: write a model in several formats and check each file in its own runtime."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import onnx
import torch
from torch import nn

from penjing.batches import take_apart
from penjing.brief import Brief, InShort
from penjing.errors import ExportError, VerifyError, at_stage
from penjing.events import Event, Listener, silent
from penjing.export.axes import SIZES_OF_A_FILE, DynamicAxes, axes_by_input
from penjing.export.base import Exporter, Layout, Runner, Source, get_format
from penjing.export.inputs import Feeds, as_feeds, fitted, identifier, input_names, num_samples, resized
from penjing.export.onnx import FIXED_BATCH, OnnxRunner, export_onnx
from penjing.export.onnx_examples import assumed_shapes, example_feeds
from penjing.export.verify import Metric, TorchRunner, VerifyResult, verify
from penjing.files import staged, temporary
from penjing.floats import floats_of, other_floats
from penjing.graph.inputs import required_inputs
from penjing.manifest import admit
from penjing.measure.sizes import size_bytes
from penjing.models.onnx_floats import floats_of_graph

_STEPS = 8
"""Roundings of a network's own number format that a right file may differ by."""


@dataclass(frozen=True)
class ExportedFile:
    """One written and verified file.

    Attributes:
        format: The format's name.
        path: File or folder.
        size_bytes: Bytes on disk (all files of a folder, external weights included).
        seconds: Time to write it.
        verification: What its runtime gave.
        notes: What was done otherwise than the format's name says, such as operations of an int8 file that
            stay in float, and why.
    """

    format: str
    path: Path
    size_bytes: int
    seconds: float
    verification: VerifyResult
    notes: tuple[str, ...] = ()

    def moved_to(self, folder: Path) -> Self:
        """The same file, at another place."""
        path = folder / self.path.name
        return replace(self, path=path, verification=replace(self.verification, path=str(path)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "format": self.format,
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "seconds": self.seconds,
            "verification": self.verification.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, repr=False)
class ExportResult(InShort):
    """All files of one export, in the order asked for."""

    files: tuple[ExportedFile, ...]

    def __getitem__(self, name: str) -> ExportedFile:
        """The file of a format."""
        for file in self.files:
            if file.format == name:
                return file
        raise KeyError(name)

    @property
    def ok(self) -> bool:
        """Whether every file agrees with the model."""
        return all(file.verification.ok for file in self.files)

    def in_short(self) -> Brief:
        """Every file with its size and what its own runtime gave."""
        from penjing.report.text import size, some

        rows = [
            (
                file.path.name,
                size(file.size_bytes),
                file.verification.runtime,
                f"{file.verification.max_abs:.2g}",
                "agrees" if file.verification.ok else "differs",
            )
            for file in self.files
        ]
        title = some(len(rows), "file") if self.ok else "not every file agrees with the model"
        return Brief(title, ("file", "size", "runtime", "largest difference", ""), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"files": [file.to_dict() for file in self.files]}


@at_stage("export")
def export(
    model: nn.Module | Path | str,
    folder: Path | str,
    formats: Sequence[str] = ("onnx", "saved_model"),
    *,
    example_inputs: Any = None,
    data: Iterable[Any] | None = None,
    int8: Path | str | None = None,
    dynamic_axes: DynamicAxes | None = None,
    opset: int | None = None,
    layout: Layout = "nchw",
    batch_sizes: Sequence[int] = (1, 3, 8),
    metric: Metric | None = None,
    tolerance: float | None = None,
    listen: Listener = silent,
) -> ExportResult:
    """Write ``model`` into ``folder`` in each format, and run every file in its own runtime.

    Args:
        model: A module, or the path of an ONNX file from any framework.
        folder: Made if need be; each file in it is replaced atomically, and listed where it is an artifact.
        formats: Names such as ``"onnx"``, ``"onnx_int8"``, ``"saved_model"``, ``"litert"``, ``"openvino"``;
            all are in `penjing.export.formats`.
        example_inputs: As the model is called; needed for a module.
        data: Batches (inputs, or inputs and target): files are verified on the first ones, and LiteRT int8 is
            calibrated with them. Without it, verification uses ``example_inputs``.
        int8: A quantized (QDQ) ONNX file for the ``*_int8`` ONNX and SavedModel formats; when given,
            ``onnx_int8`` is written without being asked for.
        dynamic_axes: Sizes of a module's inputs beside the batch that callers choose, as in `export_onnx`;
            a format that cannot leave one free says so in its notes.
        opset: ONNX operator set.
        layout: ``"nhwc"`` gives TensorFlow formats a channels-last image signature.
        batch_sizes: What verification feeds.
        metric: Task metric of each file, computed from its runner.
        tolerance: Largest relative difference of float files (default 1e-4; 8e-3 for float16 networks and
            6e-2 for bfloat16, whose kernels round differently in every runtime).
        listen: Hears ``start``, ``progress`` and ``end``, one step a file, and each note once.

    Returns:
        Path, size, time and verification of every file.

    Raises:
        ExportError: for an unknown format, a missing extra, or an op that a format lacks.
        VerifyError: when a file disagrees with the model.
        RunError: for a folder that cannot be written.
    """
    exporters = _exporters(formats, int8)
    if not isinstance(model, nn.Module):
        for name in (exporter.name for exporter in exporters if not exporter.from_onnx):
            raise ExportError(
                f"format {name!r} is made from a torch module, not from ONNX", remedy="Leave it out"
            )
        if dynamic_axes:
            raise ExportError(
                SIZES_OF_A_FILE,
                layer="dynamic_axes",
                remedy="Leave it out, or give the torch module",
            )
    folder = Path(folder)
    listen(Event("export", "start", 0, len(exporters), "file"))
    with temporary() as scratch:
        started = time.perf_counter()
        needed = any(exporter.from_onnx for exporter in exporters)
        onnx_path, reference, feeds = _onnx_source(
            model, scratch, example_inputs, data, dynamic_axes, opset, needed
        )
        onnx_seconds = time.perf_counter() - started
        fixed = _fixed_batch(onnx_path) if needed else ()
        if data is None and example_inputs is None:
            fixed += _assumed(onnx_path)
        axes = axes_by_input(dynamic_axes, {name: array.shape for name, array in feeds.items()})
        source = Source(
            onnx=onnx_path,
            feeds=feeds,
            model=model if isinstance(model, nn.Module) else None,
            example_inputs=example_inputs,
            data=data,
            int8=None if int8 is None else Path(int8),
            layout=layout,
            axes=axes,
            scratch=scratch,
        )
        files: list[ExportedFile] = []
        for done, exporter in enumerate(exporters, 1):
            with staged(folder) as aside:  # only what agrees with the model gets its place
                path = aside / exporter.filename
                given = fixed if exporter.from_onnx else ()
                file = _one(
                    exporter, source, path, reference, batch_sizes, metric, tolerance, onnx_seconds, given
                )
                names = [entry.name for entry in aside.iterdir()]
            admit(folder, names)
            told = {note for one in files for note in one.notes}
            files.append(file.moved_to(folder))
            listen(_told(file, done, len(exporters)))
            for note in (note for note in file.notes if note not in told):
                listen(Event("export", "note", message=f"{file.format}: {note}"))
    listen(Event("export", "end", len(exporters), len(exporters), "file"))
    return ExportResult(tuple(files))


def _exporters(formats: Sequence[str], int8: Path | str | None) -> list[Exporter]:
    wanted = [formats] if isinstance(formats, str) else list(dict.fromkeys(formats))
    if not wanted:
        raise ExportError("no format was asked for", remedy="Name at least one, such as 'onnx'")
    if int8 is not None and "onnx_int8" not in wanted:
        wanted.append("onnx_int8")
    exporters = [get_format(name) for name in wanted]
    for exporter in exporters:
        exporter.require()  # before any work is done
    return exporters


def _onnx_source(
    model: nn.Module | Path | str,
    scratch: Path,
    example_inputs: Any,
    data: Iterable[Any] | None,
    dynamic_axes: DynamicAxes | None,
    opset: int | None,
    needed: bool,
) -> tuple[Path, Runner, Feeds]:
    """The fp32 ONNX file (of a module only if needed), the reference to compare with, and inputs by name."""
    real = next(iter(data), None) if data is not None else None
    if isinstance(model, nn.Module):
        example_inputs = (
            take_apart(real, required_inputs(model))[0] if example_inputs is None else example_inputs
        )
        path = scratch / "model.onnx"
        if needed:
            export_onnx(
                model, path, example_inputs, dynamic_batch="auto", dynamic_axes=dynamic_axes, opset=opset
            )
        names = input_names(model, example_inputs)
        feeds = as_feeds(example_inputs, names)
        if real is not None:
            kinds = {name: array.dtype for name, array in feeds.items()}
            feeds = fitted(as_feeds(take_apart(real, names)[0], names), kinds)
        return path, TorchRunner(model, example_inputs, names), feeds
    path = Path(model)
    if not path.is_file():
        raise ExportError(
            "no such ONNX file", layer=str(path), remedy="Give a module or the path of an .onnx file"
        )
    runner = OnnxRunner(path)
    names = [spec.name for spec in runner.inputs]
    if real is None and example_inputs is None:
        feeds = example_feeds(path)
    else:
        given = as_feeds(example_inputs if real is None else take_apart(real, names)[0], names)
        feeds = fitted(given, {spec.name: spec.dtype for spec in runner.inputs})
    return path, runner, feeds


def _one(
    exporter: Exporter,
    source: Source,
    path: Path,
    reference: Runner,
    batch_sizes: Sequence[int],
    metric: Metric | None,
    tolerance: float | None,
    onnx_seconds: float,
    given: tuple[str, ...],
) -> ExportedFile:
    started = time.perf_counter()
    try:
        notes = exporter.write(source, path) or ()
    except ExportError as error:
        error.layer = exporter.name if error.layer == str(path) else error.layer  # that path is gone by now
        if floats := other_floats(_floats(reference, source)):
            error.remedy = f"{_in_float32(reference)} (its weights are {floats}). Or: {error.remedy}"
        raise
    seconds = time.perf_counter() - started + (onnx_seconds if exporter.name == "onnx" else 0.0)
    if tolerance is None:
        tolerance = max(exporter.tolerance, _STEPS * _step(_floats(reference, source)))
    allowed = None if exporter.quantized else tolerance
    runner = _opened(exporter, path, reference, source)
    layout = source.layout if exporter.changes_layout else "nchw"
    try:
        found = verify(
            runner,
            reference,
            resized(source.feeds, max(1, *(min(b, num_samples(source.feeds)) for b in batch_sizes))),
            batch_sizes=batch_sizes,
            metric=metric,
            tolerance=allowed,
            quantized=exporter.quantized,
            layout=layout,
            source=source.onnx if exporter.from_onnx else None,
        )
    except VerifyError as error:
        error.layer = f"{exporter.name} ({path.name})"
        raise
    notes = (*notes, *given, *_fixed_axes(runner, source.axes, layout), *found.notes, *_state(reference))
    return ExportedFile(exporter.name, path, size_bytes(path), seconds, found, notes)


def _step(floats: Iterable[torch.dtype]) -> float:
    """Relative step between numbers of the coarsest format that the model computes in."""
    return max((torch.finfo(dtype).eps for dtype in floats), default=0.0)


def _floats(reference: Runner, source: Source) -> frozenset[torch.dtype]:
    """The formats of the weights of a module, or of the file that was given."""
    if isinstance(reference, TorchRunner):
        return floats_of(reference.model.parameters())
    return floats_of_graph(onnx.load(str(source.onnx), load_external_data=False).graph)


def _in_float32(reference: Runner) -> str:
    return "Call model.float()" if isinstance(reference, TorchRunner) else "Export it in float32"


def _fixed_batch(onnx_path: Path) -> tuple[str, ...]:
    """Why the batch of all files is fixed, if the network leaves no choice."""
    metadata = onnx.load(str(onnx_path), load_external_data=False).metadata_props
    return tuple(entry.value for entry in metadata if entry.key == FIXED_BATCH)


def _assumed(onnx_path: Path) -> tuple[str, ...]:
    """What was taken for sizes that a given file leaves free."""
    found = assumed_shapes(onnx.load(str(onnx_path), load_external_data=False))
    return tuple(
        f"the given file leaves sizes of {name} free; {'×'.join(map(str, shape))} was taken: data or "
        "example_inputs choose others"
        for name, shape in found.items()
    )


def _fixed_axes(runner: Runner, axes: Mapping[str, Mapping[int, str]], layout: Layout) -> Iterator[str]:
    """Which sizes were to be free and are not."""
    for spec in runner.inputs:
        own = next((axes[key] for key in axes if identifier(key) == identifier(spec.name)), {})
        for dim, name in own.items():
            at = (0, 3, 1, 2)[dim] if layout == "nhwc" and len(spec.shape) == 4 else dim
            if spec.shape and (size := spec.shape[at]) is not None:
                yield f"{name} (dimension {at} of {spec.name}) is fixed at {size}"


def _state(reference: Runner) -> tuple[str, ...]:
    """What to know of the model's own forward: files remember nothing, and compute in one format."""
    if not isinstance(reference, TorchRunner):
        return ()
    notes = []
    if written := sorted(reference.written | (reference.read_again or set())):
        names = ", ".join(written)
        notes.append(f"the forward writes {names}; every call of the file starts from the present values")
    if reference.autocast:
        formats = ", ".join(sorted(reference.autocast))
        notes.append(f"the forward has autocast to {formats}; the file computes in the format of the weights")
    return tuple(notes)


def _opened(exporter: Exporter, path: Path, reference: Runner, source: Source) -> Runner:
    """The file just written, in its runtime."""
    other = other_floats(_floats(reference, source))  # for which runtimes lack kernels
    instead = _in_float32(reference) if other else "Replace the layer named"
    try:
        return exporter.open(path)
    except ExportError as error:
        raise ExportError(
            f"the file that was written is refused: {error.cause}",
            layer=exporter.name,
            remedy=f"Nothing was kept. {instead}, or leave this format out",
        ) from error


def _told(file: ExportedFile, done: int, total: int) -> Event:
    return Event(
        "export",
        "progress",
        done,
        total,
        "file",
        {
            "seconds": file.seconds,
            "size_bytes": float(file.size_bytes),
            "relative_difference": file.verification.relative,
        },
        f"{file.format}: {file.path.name}",
    )
