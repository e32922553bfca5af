"""`penjing run`: carry out a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penjing.cli import common
from penjing.cli.progress import progress
from penjing.cli.runs import finish


def command(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<name>.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Also run the two baselines.")] = False,
    resume: common.Resume = False,
    json: common.Json = False,
) -> int:
    """Carry out a recipe.

    Train, prune, recover, quantize, export, verify, report: what the YAML file says.
    """
    from penjing.recipe import Recipe
    from penjing.recipe import run as carry_out

    loaded = Recipe.from_file(recipe)
    with progress(quiet=json) as listen:
        folder = out or Path("runs") / loaded.name
        result = carry_out(loaded, folder, resume=resume, full=full, listen=listen)
    return finish(result, json)
