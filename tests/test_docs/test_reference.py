"""The reference says what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

WRITER = Path(__file__).parents[2] / "docs" / "reference.py"


def writer() -> Any:
    spec = importlib.util.spec_from_file_location("reference_writer", WRITER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    """Run ``python docs/reference.py`` if it is not."""
    made = writer()
    assert made.PAGE.read_text(encoding="utf-8") == made.page()


def test_every_option_is_explained() -> None:
    """No option's docstring was forgotten, or is written in a way that the page does not find."""
    rows = [line for line in writer().page().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if not row.strip(" |").split("|")[-1].strip()] == []
