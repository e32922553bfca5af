"""How a run ends on the command line: the table, the headline, the exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from penjing.cli.codes import Code
from penjing.cli.common import emit

if TYPE_CHECKING:
    from penjing.recipe import RunResult
    from penjing.report import Metrics


def finish(result: RunResult, as_json: bool) -> int:
    """Print a finished run; give the exit code."""
    from rich.console import Group

    from penjing.report import terminal_table

    where = f"{result.folder / 'report.html'}"
    emit(result, Group(terminal_table(result.metrics), "", result.headline, where), as_json)
    metrics = result.metrics
    if result.held and result.met is False and (metrics.search is None or metrics.search.reached):
        print(
            "penjing: the allowed loss held, but in float alone: no int8 file stayed within it, and the "
            "latency was bounded in int8. Train on in int8 (qat), or give a larger --max-drop",
            file=sys.stderr,
        )
        return Code.NOT_HELD
    if result.held and result.met is False:
        print(
            "penjing: the allowed loss held, but not at the budget: this is the smallest of the sizes tried "
            "that held it. Give more recovery epochs, more --trials, a larger budget or a larger --max-drop",
            file=sys.stderr,
        )
        return Code.NOT_HELD
    if result.held is False:
        print(
            f"penjing: the allowed loss of {_allowed(metrics)} did not hold. Give a larger budget, more "
            "recovery epochs, or a larger --max-drop",
            file=sys.stderr,
        )
        return Code.NOT_HELD
    return Code.OK


def _allowed(metrics: Metrics) -> str:
    """``0.5 points of validation accuracy``, ``1% of the validation iou``, ``0.02 of the validation iou``."""
    loss, of = metrics.max_drop or 0.0, f"the validation {metrics.metric or 'accuracy'}"
    if metrics.drop == "relative":
        return f"{100 * loss:g}% of {of}"
    return f"{loss:g} of {of}" if metrics.metric else f"{100 * loss:g} points of validation accuracy"
