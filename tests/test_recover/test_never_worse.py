from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from recover_kit import Batches, equal, network
from torch import nn

from penjing.events import Event
from penjing.graph import trace
from penjing.graph.model import GraphModel
from penjing.prune.recalibrate import recalibrate, recalibrate_
from penjing.recover import RecoverConfig, evaluate, recover, train

HARMFUL: dict[str, Any] = {"epochs": 2, "lr": 3.0, "grad_clip": 1.0, "schedule": "constant"}


def good() -> nn.Module:
    return train(network(), Batches(20), RecoverConfig(epochs=3, lr=0.05)).model


@pytest.mark.parametrize("keep", ["last", "best"])
def test_recovery_that_harms_gives_back_what_came_and_says_so(keep: str) -> None:
    model, said = good(), list[Event]()
    config = RecoverConfig.parse({**HARMFUL, "keep": keep, "recalibrate": 0})
    result = recover(model, model, Batches(), config, val=Batches(4), listen=said.append)
    assert equal(result.model, model)
    assert result.kept == "start"
    right, total, _ = evaluate(model, Batches(4))
    assert result.start["val_accuracy"] == right / total
    warning = next(event.message for event in said if event.kind == "warning")
    assert warning.startswith("training did not help")
    assert result.to_dict()["kept"] == "start"
    assert result.reached is result.start


def test_resumed_recovery_gives_back_the_same_start(tmp_path: Path) -> None:
    model = good()
    config = RecoverConfig.parse(HARMFUL)
    whole = recover(model, model, Batches(), config, val=Batches(4), checkpoint=tmp_path)
    again = recover(model, model, Batches(), config, val=Batches(4), checkpoint=tmp_path)
    assert whole.kept == again.kept == "start"
    assert equal(whole.model, again.model)
    assert whole.start == again.start


def test_what_helps_is_kept_and_training_and_sparse_training_are_not_guarded() -> None:
    helped = recover(network(seed=5), good(), Batches(20), RecoverConfig(epochs=3, lr=0.05), val=Batches(4))
    assert helped.kept == "last"
    assert helped.reached is helped.history[-1]
    assert helped.history[-1]["val_accuracy"] > helped.start["val_accuracy"]
    assert train(good(), Batches(), RecoverConfig.parse(HARMFUL), val=Batches(4)).kept == "last"
    sparse = RecoverConfig.parse({**HARMFUL, "regularize": {"soft": {"ratio": 0.8}}})
    assert recover(good(), good(), Batches(), sparse, val=Batches(4)).kept == "last"
    without = recover(good(), good(), Batches(), RecoverConfig.parse(HARMFUL))
    assert (without.kept, without.start) == ("last", {})


def test_stale_statistics_are_measured_anew_before_training() -> None:
    model = good()
    stale = copy.deepcopy(model)
    norm = stale.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 0.001  # training alone could not mend them in so few steps
    stale.get_buffer("1.running_mean").add_(5.0)
    config = RecoverConfig(epochs=1, lr=1e-4)
    mended = recover(stale, model, Batches(), config, val=Batches(4))
    assert mended.start["recalibrated"] == 1.0
    assert mended.start["val_accuracy"] > 0.9
    left = recover(stale, model, Batches(), config.model_copy(update={"recalibrate": 0}), val=Batches(4))
    assert "recalibrated" not in left.start
    assert left.history[-1]["val_accuracy"] < mended.history[-1]["val_accuracy"] - 0.2


def test_statistics_that_validation_prefers_are_kept() -> None:
    model = good()
    misleading = [(x * 30 + 7, y) for x, y in Batches(6)]
    result = recover(model, model, misleading, RecoverConfig(epochs=1, lr=1e-6), val=Batches(4))
    assert "recalibrated" not in result.start


def test_modules_and_traced_graphs_get_the_same_statistics() -> None:
    model = good()
    data = [x for x, _ in Batches(4)]
    graph = GraphModel(trace(model, data[0]))
    whole = recalibrate(model, data)
    assert recalibrate_(graph, data) == 1
    assert not graph.training
    for name in ("1.running_mean", "1.running_var"):
        assert torch.allclose(whole.get_buffer(name), graph.get_buffer(name), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(whole.get_buffer(name), model.get_buffer(name), rtol=1e-5, atol=1e-6)
    before = graph.get_buffer("1.running_mean").clone()
    graph(data[0])
    assert torch.equal(before, graph.get_buffer("1.running_mean"))
