"""What a validation record says: one number, higher is better."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = {"val_metric": "metric", "val_accuracy": "accuracy", "val_fidelity": "fidelity"}
"""Keys of a record that judge, the first one there counts: the user's metric, the share answered right, or R²
against the original's outputs."""


def quality(record: Mapping[str, float]) -> float | None:
    """What judges in a record; None where nothing was validated."""
    return next((record[key] for key in NAMES if key in record), None)


def shown(record: Mapping[str, float], value: float) -> str:
    """A value of what judges in a record: accuracy in percent, anything else as it is."""
    return f"{value:.2%}" if quality_name(record) == "accuracy" else f"{value:.4g}"


def quality_name(record: Mapping[str, float]) -> str:
    """What it is called; "" where nothing was validated."""
    return next((name for key, name in NAMES.items() if key in record), "")
