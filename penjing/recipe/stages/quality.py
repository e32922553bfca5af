"""How good a network or file is on a split: the share answered right, or, without classes, the metric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penjing.measure import Accuracy, accuracy, wilson
from penjing.measure.metric import name_of, scored
from penjing.recipe.workspace import Workspace


def quality(space: Workspace, predict: Any, batches: Iterable[Any]) -> tuple[dict[str, Any], Accuracy | None]:
    """A cell of the table as plain JSON, and the accuracy by class where there are classes.

    Args:
        space: Knows the metric, and whether the data names classes.
        predict: A module, a session or an exported file's runner.
        batches: Of one split, with targets.
    """
    if space.names_classes:
        found = accuracy(predict, batches)
        return cell_of(found), found
    value, samples = scored(space.metric, predict, batches)
    low, high = wilson(round(value * samples), samples) if space.is_share else (None, None)
    name = name_of(space.metric)
    return {"value": value, "n": samples, "low": low, "high": high, "metric": name}, None


def cell_of(measured: Accuracy) -> dict[str, Any]:
    """Value, n and interval of an accuracy, as plain JSON."""
    return {
        "value": float(measured.value),
        "n": int(measured.n),
        "low": float(measured.low),
        "high": float(measured.high),
    }
