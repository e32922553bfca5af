"""The command line: one file a verb, thin over the Python API."""

from __future__ import annotations

from penjing.cli.app import main

__all__ = ["main"]
