"""Whose class can take the pruned sizes: also where a weight is computed, or a cell stands alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_networks import Sizes, build

from penjing.prune import Plan, apply, prune


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


def test_a_configuration_follows_where_the_forward_reads_it() -> None:
    model, inputs = build("configured")
    result = prune(model, inputs, ratio=0.4)
    assert result.in_place, result.reason
    pruned: Any = result.model
    assert model.config == Sizes()  # the original keeps its own
    assert pruned.config is pruned.a.config is pruned.b.config
    assert 3 * pruned.config.width == pruned.a.qkv.out_features < 36
    assert (pruned.up.out_features, pruned.config.classes) == (10, 16)  # 16 by chance, and nobody reads it
    again = apply(model, Plan.from_dict(json.loads(json.dumps(result.plan.to_dict()))), inputs)
    assert again.in_place
    assert again.model.config == pruned.config
