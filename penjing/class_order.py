"""Data that comes class by class: what is measured on its first samples says little of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

_FEW = 32
"""Fewer labels than this may be in order by chance."""


def class_by_class(labels: list[int], samples: int) -> str:
    """A warning where the first ``samples`` labels are in order and others come behind them, since what is
    measured on these samples says little of the rest; "" otherwise."""
    first = labels[:samples]
    if len(labels) == samples or not is_open(first, samples):
        return ""
    low, high = first[0], first[-1]
    seen = f"label {low} alone" if low == high else f"labels {low} to {high}"
    return (
        f"the first {samples} samples of the data come class by class ({seen}), and what is measured on them "
        "holds for these: give the samples in mixed order (DataLoader(…, shuffle=True, generator=…))"
    )


def is_open(labels: list[int], samples: int) -> bool:
    """Whether one label more would make `class_by_class` say something."""
    return len(labels) == samples >= _FEW and labels == sorted(labels)


def plain_labels(target: Any) -> list[int]:
    """The label of each sample; nothing where the targets are no labels."""
    try:
        array = np.asarray(target.detach().cpu() if isinstance(target, Tensor) else target)
    except (ValueError, TypeError, RuntimeError):  # ragged, or of a type that NumPy has not
        return []
    return array.tolist() if array.ndim == 1 and array.dtype.kind in "iu" else []
