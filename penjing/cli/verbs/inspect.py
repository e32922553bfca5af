"""`penjing inspect`: what a network is made of, what could be pruned, and what could not and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli import common


def command(
    model: common.Model,
    weights: common.Weights = None,
    option: common.ModelOption = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Parameter-name globs that stay whole.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a picture of the network to this page.")
    ] = None,
    trust: common.Trust = False,
    json: common.Json = False,
) -> None:
    """Show what of a network can be pruned, and what cannot.

    Its groups, its frozen axes and why they are, parameters and MACs; for an artifact also its history.
    """
    from penjing.measure import inspect
    from penjing.prune.checks import checked_patterns

    loaded = common.load(model, weights=weights, options=option, trust=trust)
    found = inspect(
        loaded.model,
        common.examples(loaded, takes_data=False),
        ignore=checked_patterns(ignore or (), loaded.model),
    )
    history = _history(model, trust)
    if html is not None:
        from penjing.files import atomic_write

        with atomic_write(html) as aside:
            aside.write_text(found.html(), encoding="utf-8")
    result = {**found.to_dict(), **({"history": history} if history else {})}
    common.emit(result, _text(found, history), json)


def _history(model: str, trust: bool) -> list[Any]:
    if not (Path(model) / "manifest.json").is_file():
        return []
    from penjing.artifact import read_artifact

    return [dict(stage) for stage in read_artifact(model, trust=trust).stages]


def _text(found: Any, history: list[Any]) -> Any:
    from rich.console import Group

    lines = ["history: " + " → ".join(str(stage["stage"]) for stage in history)] if history else []
    return Group(*lines, found)
