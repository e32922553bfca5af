"""How a run ends on the command line: the table, the headline, the exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from penjing.cli.codes import Code
from penjing.cli.common import emit

if TYPE_CHECKING:
    from penjing.recipe import RunResult


def finish(result: RunResult, as_json: bool) -> int:
    """Print a finished run; give the exit code."""
    from rich.console import Group

    from penjing.report import terminal_table

    where = f"{result.folder / 'report.html'}"
    emit(result, Group(terminal_table(result.metrics), "", result.headline, where), as_json)
    if result.held and result.met is False:
        print(
            "penjing: the allowed loss held, but not at the budget: this is the smallest of the sizes tried "
            "that held it. Give more recovery epochs, more --trials, a larger budget or a larger --max-drop",
            file=sys.stderr,
        )
        return Code.NOT_HELD
    if result.held is False:
        print(
            f"penjing: the allowed loss of {100 * (result.metrics.max_drop or 0):g} points of validation "
            "accuracy did not hold. Give a larger budget, more recovery epochs, or a larger --max-drop",
            file=sys.stderr,
        )
        return Code.NOT_HELD
    return Code.OK
