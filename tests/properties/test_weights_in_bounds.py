"""Networks whose forward keeps its weights in bounds through ``.data``, as those for EEG do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.errors import TraceError
from penjing.graph import trace
from penjing.prune import masked_equivalence, prune

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Bounded(nn.Module):
    """A convolution and a layer, both far above their bounds as they are made."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        with torch.no_grad():
            self.conv.weight.mul_(4)
            self.head.weight.mul_(4)

    def bound(self) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.bound()
        return self.head(self.conv(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


class Renormed(Bounded):
    def bound(self) -> None:
        self.conv.weight.data = torch.renorm(self.conv.weight.data, p=2, dim=0, maxnorm=1)
        self.head.weight.data = torch.renorm(self.head.weight.data, p=2, dim=0, maxnorm=0.25)


class Clamped(Bounded):
    def bound(self) -> None:
        self.head.weight.data.clamp_(-0.2, 0.2)


class ClampedWithoutGradients(Bounded):
    def bound(self) -> None:
        with torch.no_grad():
            self.head.weight.data.clamp_(-0.2, 0.2)


class Copied(Bounded):
    def bound(self) -> None:
        with torch.no_grad():
            self.head.weight.copy_(torch.renorm(self.head.weight, 2, 0, 0.25))


class UnitNorms(Bounded):
    """The pruned class makes unit rows of what is left; so does the masked original."""

    def bound(self) -> None:
        weight = self.head.weight.data
        self.head.weight.data = weight / weight.norm(dim=1, keepdim=True)


class Growing(Bounded):
    def bound(self) -> None:
        self.head.weight.data = self.head.weight.data * 1.1


class Reread(nn.Module):
    """What is no weight has no copy that could stand for it."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        y.data = y.data * 2
        return y


@pytest.mark.parametrize("kind", [Renormed, Clamped, ClampedWithoutGradients, Copied, UnitNorms])
def test_pruned_in_its_class_and_exported(kind: Any, tmp_path: Path) -> None:
    model = kind().eval()
    before = model.conv.weight.detach().clone()
    trace(model, X)
    assert torch.equal(model.conv.weight, before)
    pruned = prune(model, X, ratio=0.5)
    assert pruned.in_place
    assert isinstance(pruned.model, Bounded)
    assert pruned.model.conv.weight.shape == (4, 3, 3, 3)
    assert pruned.model.head.weight.shape == (4, 4)
    assert masked_equivalence(model, pruned, X) < 1e-5
    pj.export(pruned.model, tmp_path, ("onnx",), example_inputs=X, batch_sizes=(1, 3))  # verified


def test_the_bounds_hold_while_it_recovers() -> None:
    model = Renormed()
    data = [(X, torch.arange(4)), (X.flip(0), torch.arange(4).flip(0))]
    pruned = prune(model, X, ratio=0.5)
    config = pj.RecoverConfig(epochs=2, lr=0.5, warmup=0)
    student = pj.recover(pruned.model, model, data, config, plan=pruned.plan).model.eval()
    student(X)
    assert isinstance(student, Renormed)
    assert float(student.head.weight.detach().norm(dim=1).max()) < 0.2501


def test_weights_that_never_settle_are_refused() -> None:
    model = Growing()
    before = model.head.weight.detach().clone()
    with pytest.raises(TraceError, match=r"at every call.*training loop"):
        trace(model, X)
    assert torch.equal(model.head.weight, before)


def test_other_tensors_are_refused() -> None:
    with pytest.raises(TraceError, match=r"\.data at .*test_weights_in_bounds.py:\d+"):
        trace(Reread(), X)
