"""How a run ends on the command line: the table, the headline, the exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from penjing.cli.codes import Code
from penjing.cli.common import emit

if TYPE_CHECKING:
    from penjing.recipe import RunResult

_REMEDIES = {
    "loss": "Give a larger budget, more recovery epochs, or a larger --max-drop",
    "budget": "Give more recovery epochs, more --trials, a larger budget or a larger --max-drop",
    "int8": "Train on in int8 (qat), or give a larger --max-drop",
}


def finish(result: RunResult, as_json: bool) -> int:
    """Print a finished run; give the exit code."""
    from rich.console import Group

    from penjing.report import terminal_table
    from penjing.report.text import verdict

    where = f"{result.folder / 'report.html'}"
    emit(result, Group(terminal_table(result.metrics), "", result.headline, where), as_json)
    metrics = result.metrics
    if metrics.held is None or metrics.missed is None:
        return Code.OK
    print(f"penjing: {verdict(metrics)} {_REMEDIES[metrics.missed]}", file=sys.stderr)
    return Code.NOT_HELD
