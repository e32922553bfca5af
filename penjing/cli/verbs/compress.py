"""`penjing compress`: everything, from a trained network to checked files."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.cli.progress import progress
from penjing.cli.runs import finish
from penjing.errors import RecipeError


def command(
    model: common.Model,
    data: common.NeededData,
    out: common.Out,
    budget: common.Budget = None,
    latency: Annotated[
        str | None, typer.Option(help="Latency at most: 0.5x (of the original's), or 2ms, 800us.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples in a call whose latency is bounded.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the runtime, for latency.")] = 1,
    runtime: Annotated[
        str, typer.Option(help="Whose latency is bounded: onnxruntime, openvino or litert.")
    ] = "onnxruntime",
    max_drop: Annotated[
        str, typer.Option(help="Allowed loss of validation accuracy: 0.5 is half a point; 1% is relative.")
    ] = "1",
    metric: Annotated[
        str | None,
        typer.Option(
            help="What quality is, instead of accuracy: file.py:function of outputs and targets, or "
            "agreement or fidelity with the original."
        ),
    ] = None,
    smallest: Annotated[
        str | None,
        typer.Option(help="Find the smallest within --max-drop by: params, macs, bytes or latency."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Sizes tried at most, each with its own recovery.", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Recovery: passes over the data.")] = 10,
    lr: Annotated[float, typer.Option(help="Recovery: peak learning rate.")] = 0.02,
    recover: Annotated[list[str] | None, typer.Option(help="key=value of another recovery option.")] = None,
    prune: Annotated[list[str] | None, typer.Option(help="key=value of a pruning option.")] = None,
    quantize: Annotated[bool, typer.Option(help="Bring the result to int8.")] = True,
    formats: common.Formats = "onnx,saved_model",
    dynamic_axis: common.DynamicAxes = None,
    data_option: common.DataOption = None,
    batch_size: common.BatchSize = 128,
    normalize: common.Normalize = "auto",
    augment: Annotated[str | None, typer.Option(help="Augmentation of training batches, by name.")] = None,
    weights: common.Weights = None,
    option: common.ModelOption = None,
    trust: common.Trust = False,
    seed: common.Seed = 0,
    resume: common.Resume = False,
    json: common.Json = False,
) -> int:
    """Do it all: from a trained network to checked files.

    Prune to a budget, recover from the original, quantize, export, verify. The folder is the artifact, with a
    report. Without a budget half of the parameters stay.
    """
    from penjing.export.axes import parse_axes
    from penjing.recipe import compress
    from penjing.recover import RecoverConfig

    with progress(quiet=json) as listen:
        result = compress(
            model,
            data,
            budget=_budget(budget, latency, batch, threads, runtime),
            max_drop=common.in_points(max_drop),
            metric=metric,
            smallest=smallest,
            trials=trials,
            recover=RecoverConfig.parse({"epochs": epochs, "lr": lr, **common.pairs(recover, "--recover")}),
            quantize=quantize,
            formats=common.names(formats),
            prune=common.pairs(prune, "--prune"),
            options={
                "data": {
                    "options": common.pairs(data_option, "--data-option"),
                    "batch_size": batch_size,
                    "normalize": normalize,
                    "augment": augment,
                },
                "model": {
                    "options": common.pairs(option, "--option"),
                    "weights": weights,
                    "trust": trust,
                },
                "export": {"dynamic_axes": parse_axes(dynamic_axis or ())},
                "measure": {"threads": threads, "batches": sorted({1, 32, batch})},
            },
            out=out,
            name=re.sub(r"[^\w.-]+", "-", out.resolve().name).strip("-") or "compressed",
            seed=seed,
            resume=resume,
            listen=listen,
        )
    return finish(result, json)


def _budget(
    budget: list[str] | None, latency: str | None, batch: int, threads: int, runtime: str
) -> dict[str, Any] | None:
    """The bounds of ``--budget`` and ``--latency`` as one.

    Raises:
        RecipeError: for a latency in both.
    """
    found = common.budget_of(budget) or {}
    if latency is not None and "latency" in found:
        raise RecipeError(
            f"the latency is bounded twice, by {latency} and in --budget by {found['latency']}",
            layer="--latency",
            remedy="Give one of them",
        )
    if latency is not None:
        found["latency"] = latency
    if "latency" in found:
        found = {"batch": batch, "threads": threads, "runtime": runtime, **found}
    return found or None
