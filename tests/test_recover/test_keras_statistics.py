"""Batch norms of Keras models, whose moving statistics move slowly, are measured anew like any other."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from recover_kit import Batches

from penjing.models import keras_door as door
from penjing.prune.recalibrate import recalibrate
from penjing.recover import RecoverConfig, recover

if find_spec("keras") is None:  # importing it here would choose its backend
    pytest.skip("Keras is not installed", allow_module_level=True)
pytestmark = [pytest.mark.keras]


def network() -> Any:
    keras = door.import_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(6, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),  # momentum 0.99
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )
    return door.from_keras(net).model


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.movedim(1, 3), y) for x, y in Batches(count)]


def test_statistics_are_those_of_the_data_and_momenta_come_back() -> None:
    model = network()
    layer = next(layer for layer in model.net.layers if hasattr(layer, "moving_mean"))
    fresh = recalibrate(model, [x for x, _ in batches(5)])
    hidden = torch.cat([x for x, _ in batches(5)])
    kernel = dict(model.named_parameters())
    weight = next(value for value in kernel.values() if value.dim() == 4)
    with torch.no_grad():
        y = torch.nn.functional.conv2d(hidden.movedim(3, 1), weight.permute(3, 2, 0, 1), padding="same")
    mean = next(value for name, value in fresh.named_buffers() if name.endswith("moving_mean"))
    assert torch.allclose(mean, y.mean((0, 2, 3)), atol=1e-5)
    assert layer.momentum == 0.99
    assert not fresh.training


def test_a_short_recovery_is_not_spoilt_by_slow_statistics() -> None:
    model = network()
    config = RecoverConfig.parse({"epochs": 2, "lr": 0.02, "losses": ["ce"]})
    measured = recover(model, None, batches(15), config, val=batches(4))
    left = recover(model, None, batches(15), config.model_copy(update={"recalibrate": 0}), val=batches(4))
    assert measured.start["recalibrated"] == 1.0
    assert measured.history[-1]["val_loss"] < left.history[-1]["val_loss"]
    assert measured.history[-1]["val_accuracy"] >= 0.9
