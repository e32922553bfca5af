"""`penjing study`: search over recipes, with as many workers as there are machines."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.cli.codes import Code
from penjing.cli.progress import progress
from penjing.events import Event, Listener

_SECONDS_BETWEEN_LOOKS = 10.0
"""No more often than lines are printed where there is no terminal: each of these tells something new."""


def command(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML recipe; none shows what there is.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the study.")] = Path("runs/study"),
    trials: Annotated[
        int | None,
        typer.Option(help="Trials to finish; by default what the study has, of a new one 20.", min=1),
    ] = None,
    workers: Annotated[int, typer.Option(help="Workers to start here; 0 only makes the study.", min=0)] = 1,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value of the space, e.g. scope=[global]; by default the study's own, of a new one all."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seeds the choice of trials; by default the study's own, or 0.", min=0)
    ] = None,
    json: common.Json = False,
) -> int:
    """Try many recipes, here or on many machines.

    Finds the Pareto front of accuracy, latency and size over criteria, budgets, recovery and precision.
    Exit code 2 where a worker ended with an error, or all trials that were carried out failed.
    """
    from penjing.recipe import Recipe
    from penjing.search.space import Space
    from penjing.search.study import Study, StudyConfig

    sound = True
    if recipe is None:
        study = Study(out)
    else:
        ranges = Space.parse(common.pairs(space, "--space")) if space else None
        given = {"space": ranges, "trials": trials, "seed": seed}
        said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        config = StudyConfig(recipe=Recipe.from_file(recipe), **said)
        study = Study.create(out, config)
        with progress(quiet=json) as listen:
            sound = _work(out, workers, listen)
    rows, failures, counts = study.trials(), study.failures(), study.counts()
    found = {"folder": str(out), **counts, "trials": rows, "failures": failures}
    common.emit(found, _table(rows, failures, counts, study.config.recipe.metric), json)
    return Code.OK if sound and (rows or not failures) else Code.WRONG


def _work(folder: Path, workers: int, listen: Listener) -> bool:
    """Start workers, say how far the study is, and wait; whether none of them ended with an error."""
    command = [sys.executable, "-m", "penjing", "worker", "--study", str(folder), "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(workers)]
    try:
        if running:
            _follow(folder, running, listen)
    finally:
        for process in running:
            process.terminate()  # of one that has ended this does nothing
        for process in running:
            process.wait()  # what they hold they give back: the study may be gone on with at once
    return all(process.returncode == Code.OK for process in running)


def _follow(folder: Path, running: list[subprocess.Popen[bytes]], listen: Listener) -> None:
    """Tell how many trials are done whenever that changes, until the workers have ended."""
    from penjing.search.study import Study

    study, said = Study(folder), ""
    for kind in chain(["start"], repeat("progress")):
        counts = study.counts()
        now = ", ".join(f"{counts[name]} {name}" for name in ("failed", "running", "lost") if counts[name])
        done = counts["finished"] + counts["failed"]
        if f"{done} {now}" != said:
            message = f"trials of {folder}" if kind == "start" else now
            listen(Event("study", kind, step=done, total=counts["wanted"], unit="trial", message=message))
        said = f"{done} {now}"
        left = [process for process in running if process.poll() is None]
        if not left:
            return
        with suppress(subprocess.TimeoutExpired):
            left[0].wait(_SECONDS_BETWEEN_LOOKS)


def _table(
    rows: list[dict[str, Any]], failures: list[dict[str, Any]], counts: dict[str, int], metric: str | None
) -> Any:
    from rich.console import Group
    from rich.table import Table

    from penjing.report.text import milliseconds, percent, size

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("trial", "val", "ms", "size", "int8", "left", "criterion", "scope", "folder"):
        table.add_column(head, no_wrap=head != "folder", overflow="fold")
    for row in sorted((r for r in rows if r["front"]), key=lambda r: r["latency_ms"]):
        values = row["values"]
        table.add_row(
            str(row["number"]),
            percent(row["accuracy"]) if metric is None else f"{row['accuracy']:.4g}",
            milliseconds(row["latency_ms"]),
            size(row["size_bytes"]),
            "yes" if values["quantize"] else "no",
            f"{values['left']:.2f}",
            values["criterion"],
            values["scope"],
            row["folder"],
        )
    said = ", ".join(f"{number} {name}" for name, number in counts.items())
    lost = [f"trial {one['number']} failed: {one['error']}" for one in failures]
    front: list[Any] = ["The front (no other trial is as good in all three):", table] if rows else []
    return Group(*front, *lost, said)
