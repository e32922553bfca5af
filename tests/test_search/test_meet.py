"""`Meter.meet` against made-up clocks: the file, not the prediction, decides."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import penjing as pj
from penjing.graph import couple, trace
from penjing.prune.allocate import Kept
from penjing.search.meter import Meter


@pytest.fixture(scope="module")
def wide() -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 3))
    x = torch.zeros(2, 4)
    graph = trace(model, x)
    return model, graph, couple(graph)


class Clock:
    """A latency model that predicts the number of slots, and files that take something else."""

    def __init__(self, truth: Callable[[int], float]) -> None:
        self.truth, self.scale, self.files = truth, truth(200) / 200, 0
        self.checks: list[Any] = []
        self.original = truth(200)

    def seconds(self, kept: Any) -> float:
        return self.scale * self.slots(kept)

    def slots(self, kept: Any) -> int:
        return len(next(iter(kept.values()))) if kept else 200

    def measure(self, choices: Any) -> dict[str, float]:
        return {name: self.truth(self.slots(kept)) for name, kept in choices.items()}

    def check(self, name: str, kept: Any) -> Any:
        self.files += 1
        return SimpleNamespace(seconds=self.truth(self.slots(kept)), predicted=self.seconds(kept))

    def anchor(self, kept: Any) -> None:
        self.scale = self.truth(self.slots(kept)) / self.slots(kept)


@settings(max_examples=40)
@given(power=st.floats(0.5, 2.5), share=st.floats(0.35, 0.9))
def test_the_file_comes_within_the_tolerance(
    wide: tuple[nn.Module, Any, Any], power: float, share: float
) -> None:
    model, graph, coupling = wide
    clock = Clock(lambda slots: 10.0 * (slots / 200) ** power)
    meter = Meter(model, torch.zeros(2, 4), graph, coupling, pj.Budget(latency=f"{share}x"))
    meter.__dict__["latency"] = clock

    def choose(m: Meter, near: Kept | None) -> Kept:
        limit = m.limits["latency"]
        fits = [n for n in range(1, 201) if clock.scale * n <= limit] or [1]
        return {coupling.groups[0].id: np.arange(max(fits))}

    kept = meter.meet(choose)
    miss = clock.truth(len(kept[coupling.groups[0].id])) / (share * clock.truth(200)) - 1
    assert -0.06 <= miss <= 0.02 + 1e-9
    assert clock.files <= 7
    assert meter.limits["latency"] == pytest.approx(share * clock.truth(200))
