"""What a run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.brief import Brief, InShort
from penjing.report.metrics import Metrics
from penjing.report.text import headline

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from penjing.prune import Plan


@dataclass(frozen=True, repr=False)
class RunResult(InShort):
    """A finished run: its folder (an artifact that `penjing.load` reads) and all its numbers.

    Attributes:
        folder: The run folder.
        metrics: Everything measured.
        skipped: Stages that were finished before and did not have to be done again.
    """

    folder: Path
    metrics: Metrics
    skipped: tuple[str, ...] = ()

    @property
    def held(self) -> bool | None:
        """Whether the allowed loss held; None where nothing was asked."""
        return self.metrics.held

    @property
    def met(self) -> bool | None:
        """Whether the allowed loss held *at the budget*; None where nothing was asked."""
        return self.metrics.met

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        return headline(self.metrics)

    @cached_property
    def model(self) -> nn.Module:
        """The recovered network, loaded from the artifact."""
        from penjing.artifact import load

        return load(self.folder)

    @cached_property
    def plan(self) -> Plan:
        """The pruning plan."""
        from penjing.prune import Plan

        return Plan.load(self.folder / "plan.json")

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table as a data frame."""
        from penjing.report.table import build_table

        return build_table(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "folder": str(self.folder),
            "headline": self.headline,
            "skipped": list(self.skipped),
            "metrics": self.metrics.to_dict(),
        }

    def in_short(self) -> Brief:
        """The headline; the table."""
        from penjing.report import table

        rows = [tuple(table.cells(row, self.metrics)) for row in self.metrics.rows]
        return Brief(self.headline, tuple(table.headers(self.metrics)), rows)
