"""`penjing demo`: the whole job on the embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penjing.cli import common
from penjing.cli.verbs import run


def command(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="Also run the two baselines.")] = False,
    resume: common.Resume = False,
    json: common.Json = False,
) -> int:
    """Show it all on a built-in data set, in half an hour.

    Train 100M parameters on 100 glyph classes, make them ten times fewer, and show what was kept.
    """
    from importlib.resources import as_file, files

    with as_file(files("penjing.recipe") / "demo.yaml") as recipe:
        return run.command(recipe, out, full, resume, json)
