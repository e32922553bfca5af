from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recover_kit import Batches, equal, network
from torch import nn

from penjing.errors import PruneError, RecipeError
from penjing.prune import apply
from penjing.prune.gradual import GradualStop, prune_gradually
from penjing.recover import RecoverConfig, evaluate, train

CONFIG = RecoverConfig(epochs=2, lr=0.05)
EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return train(network(width=12), Batches(20), RecoverConfig(epochs=3, lr=0.05)).model


@pytest.mark.parametrize("reconstruct", [False, True])
def test_rounds_compose_to_one_plan_of_the_whole_ratio(dense: nn.Module, reconstruct: bool) -> None:
    data, val = Batches(10), Batches(4)
    result = prune_gradually(
        dense, EXAMPLE, data, val, 0.75, rounds=3, reconstruct=reconstruct, config=CONFIG
    )
    assert result.stopped is GradualStop.DONE
    assert result.plan is not None
    assert [len(edit.kept) for edit in result.plan.groups.values()] == [3, 3]
    params = [one.params for one in result.rounds]
    assert params == sorted(params, reverse=True)
    right, total, _ = evaluate(result.model, val)
    assert result.rounds[-1].val_accuracy == right / total
    # the plan turns the original into a network of the same shapes
    small = apply(dense, result.plan, EXAMPLE).model
    small.load_state_dict(result.model.state_dict())
    assert torch.allclose(small(EXAMPLE), result.model(EXAMPLE))
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_guard_gives_back_the_last_round_that_held(dense: nn.Module) -> None:
    idle = RecoverConfig(epochs=0)
    options = {"rounds": 4, "kind": "iterative", "config": idle, "max_drop": 0.05}
    result = prune_gradually(dense, EXAMPLE, Batches(4), Batches(4), 0.9, **options)  # type: ignore[arg-type]
    assert result.stopped is GradualStop.GUARD
    assert not result.rounds[-1].held
    assert all(one.held and one.val_accuracy >= result.dense_accuracy - 0.05 for one in result.rounds[:-1])
    right, total, _ = evaluate(result.model, Batches(4))
    assert right / total >= result.dense_accuracy - 0.05
    nothing = prune_gradually(
        dense, EXAMPLE, Batches(4), Batches(4), 0.9, rounds=1, config=idle, max_drop=0.0
    )
    assert nothing.plan is None
    assert equal(nothing.model, dense)


def test_a_drop_of_exactly_what_is_allowed_holds(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not off by the rounding of a difference: 0.54 - 0.05 is 0.49000000000000005."""
    shares = iter((0.54, 0.49, 0.49))
    monkeypatch.setattr("penjing.prune.gradual.share_right", lambda *args, **options: next(shares))
    result = prune_gradually(
        dense,
        EXAMPLE,
        Batches(2),
        Batches(2),
        rounds=1,
        config=RecoverConfig(epochs=0),
        max_drop=0.05,
    )
    assert result.stopped is GradualStop.DONE


def test_options_of_the_last_round_may_be_a_dict(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def heard(small: nn.Module, model: nn.Module, data: Batches, options: RecoverConfig, **_: Any) -> Any:
        seen.append(options.epochs)
        return SimpleNamespace(model=small)

    monkeypatch.setattr("penjing.prune.gradual.recover", heard)
    data, options = Batches(2), {"epochs": 3}
    prune_gradually(dense, EXAMPLE, data, data, rounds=2, config=options, last={"epochs": 7})
    prune_gradually(dense, EXAMPLE, data, data, rounds=2, config=options)
    assert seen == [3, 7, 3, 3]
    with pytest.raises(RecipeError, match="'smae'"):
        prune_gradually(dense, EXAMPLE, data, data, last="smae")  # type: ignore[arg-type]


def test_a_drop_is_a_fraction(dense: nn.Module) -> None:
    with pytest.raises(PruneError, match=r"max_drop 5"):
        prune_gradually(dense, EXAMPLE, Batches(4), Batches(4), max_drop=5)
