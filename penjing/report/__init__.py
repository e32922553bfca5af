"""What a run says about itself: the numbers, the table and the page."""

from __future__ import annotations

from penjing.report.metrics import Metrics, Row
from penjing.report.page import render, write_report
from penjing.report.table import build_table, terminal_table, write_table

__all__ = ["Metrics", "Row", "build_table", "render", "terminal_table", "write_report", "write_table"]
