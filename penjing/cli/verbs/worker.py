"""`penjing worker`: carry out trials of a study, beside any number of other workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penjing.cli import common
from penjing.cli.progress import progress


def command(
    study: Annotated[Path, typer.Option(help="The folder of the study, shared by all workers.")],
    json: common.Json = False,
) -> None:
    """Work on a study's trials.

    Until enough are finished; any number of workers may share a study, and each may be killed at any time.
    """
    from penjing.search.study import Study
    from penjing.search.worker import work

    with progress(quiet=json) as listen:
        finished = work(study, listen=listen)
    counts = Study(study).counts()
    common.emit({"finished_here": finished, **counts}, f"{finished} trials here; {counts}", json)
