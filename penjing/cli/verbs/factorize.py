"""`penjing factorize`: two thin layers in the place of one, without training."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.cli.progress import progress


def command(
    model: common.Model,
    data: common.NeededData,
    out: common.Out,
    budget: Annotated[
        list[str], typer.Option(help="What may be left, of macs or params: macs=0.5, params=200000.")
    ],
    ignore: Annotated[list[str] | None, typer.Option(help="Parameter-name globs that stay whole.")] = None,
    samples: Annotated[
        int, typer.Option(min=8, help="Most samples of --data that are looked at; 20000 for a closer fit.")
    ] = 2048,
    block_steps: Annotated[
        int, typer.Option(min=0, help="Steps in which each block is fitted on --data: 400 for a closer fit.")
    ] = 100,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of any other option of the refit.")
    ] = None,
    data_option: common.DataOption = None,
    batch_size: common.BatchSize = 128,
    normalize: common.Normalize = "auto",
    weights: common.Weights = None,
    option: common.ModelOption = None,
    trust: common.Trust = False,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Split layers into two thin ones each, for a budget, and refit them on --data without its labels.

    It keeps more of the function than fewer channels do where it is MACs or parameters that count; for
    latency, measure both. The artifact folder holds the network, and the ranks that made it.
    """
    from penjing.artifact import save_artifact
    from penjing.factor import factorize
    from penjing.manifest import check_replaceable
    from penjing.prune.reconstruct import ReconstructConfig

    check_replaceable(out)
    config = ReconstructConfig.parse(
        {"max_samples": samples, "block_steps": block_steps, **common.pairs(set_, "--set")}
    )
    limits = common.budget_of(budget) or {}
    loaded = common.load(model, weights=weights, options=option, trust=trust, seed=seed)
    feed = common.feed_of(
        data,
        data_option,
        model=loaded,
        batch_size=batch_size,
        normalize=normalize,
        seed=seed,
        samples=config.max_samples,
    )
    examples = common.examples(loaded, feed)
    with progress(quiet=json) as listen:
        made = factorize(
            loaded.model,
            examples,
            limits,
            feed.calibration(),
            ignore=tuple(ignore or ()),
            reconstruct=config,
            seed=seed,
            listen=listen,
        )
    save_artifact(
        out,
        made.model,
        example_inputs=examples,
        stages=[*common.history(model), {"stage": "factorize", "ranks": made.ranks}],
        normalize=feed.normalize,
    )
    common.emit({**made.to_dict(), "folder": str(out)}, _text(made, out), json)


def _text(made: Any, out: Any) -> str:
    from penjing.report.text import count, times

    pairs = (
        ("params", made.before.num_params, made.after.num_params),
        ("macs", made.before.num_macs, made.after.num_macs),
    )
    lines = [f"{name}: {count(old)} → {count(new)} ({times(old, new)})" for name, old, new in pairs]
    split = len(made.layers)
    lines.append(f"{split} layer{'s' * (split != 1)} split in two")
    lines += [
        f"whole: {number} layer{'s' * (number != 1)}, {why}"
        for why, number in Counter(made.whole.values()).items()
    ]
    if made.fit is not None:
        lines.append(
            f"error of the outputs on held-back samples: {made.fit.error_before:.3g} → "
            f"{made.fit.error_after:.3g} after the refit"
        )
        lines += made.fit.notes
    return "\n".join([*lines, f"written to {out}"])
