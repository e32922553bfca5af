"""The number format of training: measured on the network itself, and only where the device has both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.events import Event
from penjing.recover import RecoverConfig, recover
from penjing.recover import loop as loops
from penjing.recover import precision as precisions

CPU = torch.device("cpu")


class Clock:
    """A forward pass whose passes take made-up seconds by format."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> None:
        self.now, self.cost = 0.0, {False: fp32, True: bf16}
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def __call__(self, model: nn.Module) -> Tensor:
        self.now += self.cost[torch.is_autocast_enabled("cpu")]
        return torch.as_tensor(model(torch.ones(2, 3)))


@pytest.mark.parametrize(("bf16", "format_"), [(0.5, "bf16"), (0.9, "fp32"), (3.0, "fp32")])
def test_the_faster_format_if_it_pays_clearly(
    monkeypatch: pytest.MonkeyPatch, bf16: float, format_: str
) -> None:
    clock = Clock(monkeypatch, 1.0, bf16)
    found = precisions.speedup(nn.Linear(3, 2), clock, CPU)
    assert found == pytest.approx(1 / bf16)
    assert precisions.choose(found) == format_


def test_a_network_that_knows_no_bfloat16_is_trained_in_fp32() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.linear(x)
            if hidden.dtype == torch.bfloat16:
                raise RuntimeError("not implemented for 'BFloat16'")
            return hidden

    assert precisions.speedup(Picky(), lambda model: torch.as_tensor(model(torch.ones(2, 3))), CPU) == 0.0


def test_a_network_that_fails_in_fp32_says_so() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        precisions.speedup(nn.Linear(3, 2), lambda model: torch.as_tensor(model(torch.ones(2, 4))), CPU)


class TestInTheLoop:
    @pytest.fixture
    def told(self) -> list[Event]:
        return []

    def train(self, told: list[Event], **options: Any) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        before = copy.deepcopy(model.state_dict())
        data = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(4)]
        config = RecoverConfig.parse({"lr": 0.01, **options})
        done = recover(model, None, data, config, val=data, listen=told.append)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return done.model, done

    def test_auto_takes_what_was_measured_and_tells(
        self, monkeypatch: pytest.MonkeyPatch, told: list[Event]
    ) -> None:
        monkeypatch.setattr(loops, "can_gain", lambda device: True)
        monkeypatch.setattr(loops, "MIN_STEPS", 4)
        monkeypatch.setattr(loops, "speedup", lambda *asked: 2.0)
        _, done = self.train(told, epochs=1)
        assert done.precision == "bf16"
        assert [event.metrics for event in told if "bf16_speedup" in event.metrics] == [{"bf16_speedup": 2.0}]

    def test_measuring_changes_nothing(self, monkeypatch: pytest.MonkeyPatch, told: list[Event]) -> None:
        plain, _ = self.train(told, epochs=2, precision="fp32")
        monkeypatch.setattr(loops, "can_gain", lambda device: True)
        monkeypatch.setattr(loops, "MIN_STEPS", 4)
        monkeypatch.setattr(loops, "choose", lambda found: "fp32")
        measured, _ = self.train(told, epochs=2)
        for name, value in plain.state_dict().items():
            assert torch.equal(value, measured.state_dict()[name]), name

    def test_short_runs_are_not_measured(self, monkeypatch: pytest.MonkeyPatch, told: list[Event]) -> None:
        monkeypatch.setattr(loops, "can_gain", lambda device: True)
        monkeypatch.setattr(loops, "speedup", lambda *asked: pytest.fail("measured"))
        _, done = self.train(told, epochs=1)
        assert done.precision == "fp32"
