"""Networks that write into their inputs (``x.sub_(mean)``): every stage sees the data as they were given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.batches import call_model
from penjing.measure.accuracy import accuracy
from penjing.prune import masked_equivalence


class Normalizing(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, 6))
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(self.mean).div_(0.5)
        return self.c(self.b(self.a(x).relu()).relu())  # type: ignore[no-any-return]


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 6, generator=draw), torch.arange(32) % 3) for _ in range(3)]


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "activation"])
def test_pruning_and_refit(data: list[tuple[Tensor, Tensor]], criterion: str) -> None:
    given, model = [x.clone() for x, _ in data], Normalizing()
    x = given[0].clone()
    pruned = pj.prune(model, x, ratio=0.4, criterion=criterion, data=data)
    assert pruned.in_place
    assert masked_equivalence(model, pruned, x) < 1e-5
    refitted = pj.prune(model, x, ratio=0.4, criterion=criterion, data=data, reconstruct=True)
    assert refitted.reconstruction is not None
    expected, before, after = (call_model(m, x) for m in (model, pruned.model, refitted.model))
    assert (after - expected).square().sum() < 0.5 * (before - expected).square().sum()
    assert all(
        torch.equal(one, other) for one, (other, _) in zip([*given, given[0]], [*data, (x, x)], strict=True)
    )


def test_recovery_and_files(data: list[tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    given, model = [x.clone() for x, _ in data], Normalizing()
    pruned = pj.prune(model, data[0][0], ratio=0.4)
    student = pj.recover(
        pruned.model, model, data, pj.RecoverConfig(epochs=1, lr=0.01), val=data[:1], plan=pruned.plan
    ).model
    files = pj.export(student, tmp_path, formats=("onnx",), example_inputs=data[0][0], batch_sizes=(1, 3))
    assert files.ok
    first, again = (accuracy(student, data).value for _ in range(2))
    assert first == again
    assert all(torch.equal(one, other) for one, (other, _) in zip(given, data, strict=True))
