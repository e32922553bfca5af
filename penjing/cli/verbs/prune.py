"""`penjing prune`: make a network smaller, without training."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.cli.progress import progress
from penjing.errors import RecipeError


def command(
    model: common.Model,
    out: common.Out,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction removed of each group's slots; 0.5 without a budget.")
    ] = None,
    budget: common.Budget = None,
    criterion: Annotated[
        str, typer.Option(help="How slots are scored: magnitude, taylor, obs, …")
    ] = "magnitude",
    scope: Annotated[
        str, typer.Option(help="How groups share what goes: local, global, isomorphic or sensitivity.")
    ] = "local",
    ignore: Annotated[list[str] | None, typer.Option(help="Parameter-name globs that stay whole.")] = None,
    round_to: Annotated[int, typer.Option(help="Widths become multiples of this.")] = 1,
    branches: Annotated[
        str,
        typer.Option(
            help="Residual branches to take out whole first: how many or auto (both need --data), or names."
        ),
    ] = "0",
    reconstruct: Annotated[
        bool, typer.Option("--reconstruct", help="Refit layers on --data afterwards.")
    ] = False,
    block_steps: Annotated[
        int, typer.Option(min=0, help="Then fit whole blocks on --data, too, in so many steps each: 300.")
    ] = 0,
    data: common.Data = None,
    data_option: common.DataOption = None,
    batch_size: common.BatchSize = 128,
    normalize: common.Normalize = "auto",
    weights: common.Weights = None,
    option: common.ModelOption = None,
    trust: common.Trust = False,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Prune a network to a ratio or a budget.

    The artifact folder holds the smaller network, and the plan that made it.
    """
    from penjing.artifact import save_artifact
    from penjing.manifest import check_replaceable
    from penjing.prune import Budget, prune
    from penjing.prune.reconstruct import ReconstructConfig

    if ratio is not None and budget:
        raise RecipeError(
            "a ratio and a budget both say how much goes", layer="--ratio", remedy="Give one of the two"
        )
    check_replaceable(out)
    loaded = common.load(model, weights=weights, options=option, trust=trust, seed=seed)
    limits = common.budget_of(budget)
    feed = None
    if data is not None:
        feed = common.feed_of(
            data,
            data_option,
            model=loaded,
            batch_size=batch_size,
            normalize=normalize,
            seed=seed,
        )
    examples = common.examples(loaded, feed)
    with progress(quiet=json) as listen:
        made = prune(
            loaded.model,
            examples,
            0.5 if ratio is None else ratio,
            criterion,
            scope,  # type: ignore[arg-type]  # checked by `prune`, which names what is allowed
            tuple(ignore or ()),
            data=feed.calibration() if feed else None,
            reconstruct=ReconstructConfig(block_steps=block_steps) if block_steps else reconstruct,
            budget=Budget.parse(limits) if limits else None,
            round_to=round_to,
            branches=_branches(branches),
            seed=seed,
            listen=listen,
        )
    save_artifact(
        out,
        made.model,
        example_inputs=examples,
        plan=made.plan,
        stages=[*common.history(model), "prune"],
        normalize=feed.normalize if feed else loaded.normalize,
    )
    result = {key: value for key, value in made.to_dict().items() if key != "plan"} | {"folder": str(out)}
    common.emit(result, _text(made, out), json)


def _branches(given: str) -> Any:
    """A number, ``"auto"``, or names with commas between."""
    if given == "auto":
        return given
    return int(given) if given.isdigit() else common.names(given)


def _text(made: Any, out: Any) -> str:
    from penjing.report.text import count, times

    pairs = [(name, made.before[name], made.after[name]) for name in made.before]
    lines = [f"{name}: {count(old)} → {count(new)} ({times(old, new)})" for name, old, new in pairs]
    lines += [f"without {name}" for name in made.plan.branches]
    lines += [f"frozen: {one.reason}" for one in made.frozen]
    if made.evened:
        lines.append(made.evened)
    if not made.in_place:
        lines.append(f"the traced graph is what comes back: {made.reason}")
    return "\n".join([*lines, f"written to {out}"])
