"""`penjing export`: write files that other runtimes serve, each checked there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.cli.progress import progress, without_notes


def command(
    context: typer.Context,
    model: common.Model,
    out: common.Out,
    formats: Annotated[
        str,
        typer.Option(
            help=common.FORMATS, show_default="onnx,saved_model; with --verify-only those that are there"
        ),
    ] = "onnx,saved_model",
    int8: Annotated[Path | None, typer.Option(help="An int8 ONNX file for the int8 formats.")] = None,
    dynamic_axis: common.DynamicAxes = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set.")] = None,
    verify_only: Annotated[
        bool, typer.Option("--verify-only", help="Check the files already in --out.")
    ] = False,
    data: common.Data = None,
    data_option: common.DataOption = None,
    batch_size: common.BatchSize = 128,
    normalize: common.Normalize = "auto",
    weights: common.Weights = None,
    option: common.ModelOption = None,
    trust: common.Trust = False,
    json: common.Json = False,
) -> None:
    """Export a network and verify every file.

    Each file is run in its own runtime at several batch sizes and compared with the network.
    """
    from penjing.export import export
    from penjing.export.axes import parse_axes
    from penjing.files import check_folder

    check_folder(out)
    axes = parse_axes(dynamic_axis or ())
    source, loaded = common.opened(model, weights=weights, options=option, trust=trust)
    feed = batches = None
    if data is not None:
        feed = common.feed_of(
            data,
            data_option,
            model=loaded,
            source=source,
            batch_size=batch_size,
            normalize=normalize,
            seed=0,
        )
        batches = feed.calibration()
    inputs = None if loaded is None else common.examples(loaded, feed)
    chosen = common.names(formats)
    if verify_only:
        left: list[str] = []
        asked = context.get_parameter_source("formats")
        if asked is not None and asked.name == "DEFAULT":
            chosen, left = _there(out, with_data=feed is not None)
        found = _verify(source, out, chosen, inputs, batches)
        lines = "\n".join([*_lines((one, one.notes) for one in found), *left])
        common.emit({"files": [one.to_dict() for one in found], "notes": left}, lines, json)
        return
    with progress(quiet=json) as listen:
        made = export(
            source,
            out,
            chosen,
            example_inputs=inputs,
            data=batches,
            int8=int8,
            dynamic_axes=axes,
            opset=opset,
            listen=without_notes(listen),
        )
    common.emit(made, "\n".join(_lines((file.verification, file.notes) for file in made.files)), json)


def _lines(told: Iterable[tuple[Any, Iterable[str]]]) -> list[str]:
    """What each file's check found, and its notes."""
    return [line for found, notes in told for line in (_line(found), *notes)]


def _there(out: Path, *, with_data: bool) -> tuple[tuple[str, ...], list[str]]:
    """The formats whose files are in a folder, and what is said of those left out.

    Raises:
        ExportError: where none can be compared.
    """
    from penjing.errors import ExportError
    from penjing.export.base import formats

    there = {
        name: exporter for name, exporter in sorted(formats().items()) if (out / exporter.filename).exists()
    }
    if not there:
        raise ExportError(
            "there is no exported file", layer=str(out), remedy="Give the folder that they are in"
        )
    left = [] if with_data else [name for name, exporter in there.items() if exporter.quantized]
    why = "not compared: its ranges are those of real inputs, which --data gives"
    if len(left) == len(there):
        raise ExportError(
            "there are int8 files alone", layer=str(out), remedy="Give --data: they know real inputs"
        )
    return tuple(name for name in there if name not in left), [
        f"{out / there[name].filename}: {why}" for name in left
    ]


def _verify(source: Any, out: Path, chosen: tuple[str, ...], inputs: Any, batches: Any) -> list[Any]:
    from penjing.export import open_file, verify
    from penjing.export.base import get_format
    from penjing.export.onnx_examples import example_feeds

    reference, original = source, None
    if isinstance(source, Path):
        reference, original = open_file(source), source
        inputs = example_feeds(source)
    given = next(iter(batches)) if batches is not None else inputs
    found = []
    for name in chosen:
        exporter = get_format(name)
        path = out / exporter.filename
        found.append(verify(path, reference, given, quantized=exporter.quantized, source=original))
    return found


def _line(found: Any) -> str:
    batches = ", ".join(f"{row.batch} ({row.free})" if row.free else str(row.batch) for row in found.rows)
    return (
        f"{found.path}: agrees within {found.relative:.1e} (relative), {found.max_abs:.1e} (absolute) "
        f"at batch {batches} in {found.runtime}"
    )
