"""`penjing quantize`: a network or an ONNX file to int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.cli.progress import progress, without_notes
from penjing.errors import RecipeError


def command(
    model: common.Model,
    data: common.NeededData,
    out: Annotated[Path, typer.Option(help="The int8 ONNX file to write, or a folder for model.int8.onnx.")],
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="Allowed loss of validation accuracy: 0.5 is half a point. Layers go back to float until it "
            "holds."
        ),
    ] = None,
    metric: common.Metric = None,
    dynamic_axis: common.DynamicAxes = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value of any other option.")] = None,
    data_option: common.DataOption = None,
    batch_size: common.BatchSize = 128,
    normalize: common.Normalize = "auto",
    weights: common.Weights = None,
    option: common.ModelOption = None,
    trust: common.Trust = False,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Write an int8 ONNX file.

    It runs in stock ONNX Runtime's int8 kernels; beside it lie its weights as safetensors.
    """
    from penjing.export.axes import parse_axes
    from penjing.files import check_folder
    from penjing.measure.metric import load_metric, on_arrays
    from penjing.quantize import QuantizeConfig, quantize

    config = QuantizeConfig.parse(
        {
            "max_drop": _points(max_drop),
            "dynamic_axes": parse_axes(dynamic_axis or ()),
            **common.pairs(set_, "--set"),
        }
    )
    if out.suffix.lower() != ".onnx":
        out = out / "model.int8.onnx"
    check_folder(out.parent)
    source, loaded = common.opened(model, weights=weights, options=option, trust=trust, seed=seed)
    feed = common.feed_of(
        data,
        data_option,
        model=loaded,
        source=source,
        batch_size=batch_size,
        normalize=normalize,
        seed=seed,
    )
    inputs = None if loaded is None else common.examples(loaded, feed)
    with progress(quiet=json) as listen:
        made = quantize(
            source,
            feed.calibration(),
            config,
            out=out,
            example_inputs=inputs,
            eval_data=feed.split("val"),
            labels_metric=None if metric is None else on_arrays(load_metric(metric)),
            seed=seed,
            listen=without_notes(listen),
        )
    common.emit(made, _text(made, "accuracy" if metric is None else "metric"), json)


def _points(max_drop: str | None) -> float | None:
    from penjing.recipe.compress import allowed_drop

    if max_drop is None:
        return None
    allowed, kind = allowed_drop(common.in_points(max_drop, relative=False))
    if kind == "relative":
        raise RecipeError(
            f"{max_drop!r} is relative, and a file has nothing to be relative to",
            layer="--max-drop",
            remedy="Give points: 0.5 is half a point",
        )
    return allowed


def _text(made: Any, what: str) -> str:
    lines = [made.in_short().title]
    if made.metric_fp32 is not None:
        values = f"{made.metric_fp32:.4f} → {made.metric_int8:.4f}"
        lines.append(f"validation {what} {values} (n={made.metric_samples})")
    if made.timing is not None:
        lines.append(f"{made.timing.fp32_ms:.3g} → {made.timing.int8_ms:.3g} ms ({made.timing.speedup:.3g}×)")
    lines += [f"{layer.name} stays float: {layer.why}" for layer in made.layers if not layer.quantized]
    return "\n".join([*lines, *made.notes, f"written to {made.path} and {made.weights_path}"])
