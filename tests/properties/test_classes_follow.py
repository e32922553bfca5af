"""Whose class can take the pruned sizes: also where a weight is computed, or a cell stands alone."""

from __future__ import annotations

import pytest
from small_networks import build

from penjing.prune import prune


@pytest.mark.parametrize(
    ("name", "follows"),
    [
        ("weight_norm", True),
        ("cells", True),
        ("hand_norm", True),
        ("padded_shortcut", True),
        ("messages", False),
    ],
)
def test_which_classes_follow(name: str, follows: bool) -> None:
    model, inputs = build(name)
    assert prune(model, inputs, ratio=0.5, criterion="random").in_place == follows
