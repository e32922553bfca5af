"""`penjing compress`: everything, from a trained network to checked files."""

from __future__ import annotations

from typing import Annotated

import typer

from penjing.cli import common
from penjing.cli.progress import progress
from penjing.cli.runs import finish


def command(
    model: common.Model,
    data: common.NeededData,
    out: common.Out,
    budget: common.Budget = None,
    max_drop: Annotated[
        float, typer.Option(help="Allowed loss of validation accuracy; 0.01 is a point.")
    ] = 0.01,
    epochs: Annotated[int, typer.Option(help="Recovery: passes over the data.")] = 10,
    lr: Annotated[float, typer.Option(help="Recovery: peak learning rate.")] = 0.02,
    recover: Annotated[list[str] | None, typer.Option(help="key=value of another recovery option.")] = None,
    prune: Annotated[list[str] | None, typer.Option(help="key=value of a pruning option.")] = None,
    quantize: Annotated[bool, typer.Option(help="Bring the result to int8.")] = True,
    formats: Annotated[str, typer.Option(help="Export formats, with commas.")] = "onnx,saved_model",
    data_option: common.DataOption = None,
    batch_size: common.BatchSize = 128,
    normalize: common.Normalize = "unit",
    augment: Annotated[str | None, typer.Option(help="Augmentation of training batches, by name.")] = None,
    weights: common.Weights = None,
    option: common.ModelOption = None,
    seed: common.Seed = 0,
    resume: common.Resume = False,
    json: common.Json = False,
) -> int:
    """Prune to a budget, recover from the original, quantize, export, verify; the folder is the artifact."""
    from penjing.recipe import compress
    from penjing.recover import RecoverConfig

    with progress(quiet=json) as listen:
        result = compress(
            model,
            data,
            budget=common.budget_of(budget),
            max_drop=max_drop,
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
                "model": {"options": common.pairs(option, "--option"), "weights": weights},
            },
            out=out,
            name=out.resolve().name,
            seed=seed,
            resume=resume,
            listen=listen,
        )
    return finish(result, json)
