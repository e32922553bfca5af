"""`penjing recover`: train a pruned network to answer as the original does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.cli.progress import progress


def command(
    student: common.Model,
    teacher: Annotated[str, typer.Option(help="The original network, as a model spec.")],
    data: common.NeededData,
    out: common.Out,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 10,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.02,
    metric: common.Metric = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value of any other option.")] = None,
    data_option: common.DataOption = None,
    batch_size: common.BatchSize = 128,
    normalize: common.Normalize = "auto",
    teacher_weights: Annotated[str | None, typer.Option(help="Weights of the teacher.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="key=value for the teacher's factory.")] = None,
    trust: common.Trust = False,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Distil the original network into its pruned copy.

    What comes out is an artifact folder, never worse on validation data than what went in. After every
    epoch a checkpoint is written beside it (OUT.checkpoint); the same command given again goes on from it.
    """
    from torch import distributed

    from penjing.artifact import save_artifact
    from penjing.cli.checkpoints import checkpoint_beside
    from penjing.manifest import check_replaceable
    from penjing.measure.metric import load_metric
    from penjing.recover import RecoverConfig, recover

    check_replaceable(out)
    small = common.load(student, weights=None, options=None, trust=trust, seed=seed)
    large = common.load(teacher, weights=teacher_weights, options=option, trust=trust, seed=seed)
    config = RecoverConfig.parse({"epochs": epochs, "lr": lr, **common.pairs(set_, "--set")})
    feed = common.feed_of(
        data,
        data_option,
        model=small if small.normalize else replace(large, example_inputs=small.example_inputs),
        batch_size=batch_size,
        normalize=normalize,
        seed=seed,
    )
    inputs, plan = common.examples(small, feed), _plan(student)
    depends = {"student": small, "teacher": large, "data": feed, "metric": metric}
    with (
        progress(quiet=json) as listen,
        checkpoint_beside(out, {name: _seen(what) for name, what in depends.items()}, listen) as checkpoint,
    ):
        made = recover(
            small.model,
            large.model,
            feed.train(),
            config,
            val=feed.split("val"),
            plan=plan,
            metric=None if metric is None else load_metric(metric),
            checkpoint=checkpoint,
            seed=seed,
            listen=listen,
        )
        if distributed.is_initialized() and distributed.get_rank() > 0:
            return  # of torchrun's processes the first one writes and tells
        pruned = [] if plan is None else [{"stage": "prune"}]
        save_artifact(
            out,
            made.model,
            example_inputs=inputs,
            plan=plan,
            stages=[*(common.history(student) or pruned), "recover"],
            normalize=feed.normalize,
        )
    common.emit({**made.to_dict(), "folder": str(out)}, _text(made, out), json)


def _seen(what: Any) -> Any:
    """What tells a network, or data as it is fed, from others."""
    from penjing.models.spec import LoadedModel
    from penjing.recipe.feed import Feed
    from penjing.recipe.seen import part_digests, values_digest
    from penjing.recover.checkpoint import model_tensors

    if isinstance(what, LoadedModel):
        return values_digest(model_tensors(what.model))
    if isinstance(what, Feed):
        parts = {**part_digests("train", what.bundle.train), **part_digests("val", what.bundle.val)}
        return {**what.config.to_dict(), "normalize": common.jsonable(what.normalize), **parts}
    return what


def _plan(student: str) -> Any:
    path = Path(student) / "plan.json"
    if not path.is_file():
        return None
    from penjing.prune import Plan

    return Plan.load(path)


def _text(made: Any, out: Path) -> str:
    from penjing.recover.quality import quality, quality_name, shown
    from penjing.report.text import duration

    found = quality(made.reached)
    value = "" if found is None else f", validation {quality_name(made.reached)} {shown(made.reached, found)}"
    before = " (the weights from before)" if made.kept == "start" else ""
    steps = f"{made.steps} step{'s' * (made.steps != 1)}"
    return f"{steps} in {duration(made.seconds)}{value}{before}; {made.stopped.value}\nwritten to {out}"
