"""`penjing report`: the table and the page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penjing.cli import common
from penjing.errors import ArtifactError


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page and tables; by default the run's.")
    ] = None,
    json: common.Json = False,
) -> None:
    """Print a run's table and write its page anew.

    Both come from the run's metrics.json; nothing is computed again.
    """
    from rich.console import Group

    from penjing.report import Metrics, terminal_table, write_report
    from penjing.report.text import headline, verdict

    if not (folder / "metrics.json").exists():
        _check_is_run(folder)
    metrics = Metrics.read(folder)
    page = write_report(out or folder, metrics)
    said = {"headline": headline(metrics), "verdict": verdict(metrics)}
    text = Group(terminal_table(metrics), "", *(line for line in said.values() if line), str(page))
    common.emit({**metrics.to_dict(), **said, "page": str(page)}, text, json)


def _check_is_run(folder: Path) -> None:
    """Tell how a study is looked at, which is no run."""
    from penjing.search.study import STUDY_FILE  # loads much

    if (folder / STUDY_FILE).is_file():
        raise ArtifactError(
            "it is a study, whose trials have a report each",
            layer=str(folder),
            remedy=f"Its front: penjing study --out {folder}; a trial's page: {folder}/trials/…/report.html",
        )
