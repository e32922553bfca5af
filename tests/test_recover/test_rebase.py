"""Recovery starts from the network's own function, though training normalises by the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.graph import trace
from penjing.graph.model import GraphModel
from penjing.prune.recalibrate import rebase_norms_, recalibrate_
from penjing.recover import RecoverConfig, recover


class Normed(nn.Module):
    """Norms behind a convolution, in a residual branch, used twice, and without scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, eps=1e-3))
        self.plain = nn.BatchNorm2d(width, affine=False)
        self.head, self.last = nn.Linear(width, 4), nn.BatchNorm1d(4)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                nn.init.normal_(norm.running_mean, std=0.5)
                nn.init.uniform_(norm.running_var, 0.2, 3.0)
                if norm.affine:
                    nn.init.normal_(norm.weight)
                    nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.plain(torch.relu(x + self.branch(x) + self.branch(x.flip(3))))
        out: Tensor = self.last(self.head(x.mean((2, 3))))
        return out


def network(width: int, seed: int, *, traced: bool) -> nn.Module:
    torch.manual_seed(seed)
    model = Normed(width).eval()
    return GraphModel(trace(model, torch.zeros(2, 3, 8, 8))) if traced else model


@pytest.mark.parametrize("traced", [False, True])
@settings(max_examples=4, deadline=None)
@given(width=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_function_stays_and_training_begins_with_it(traced: bool, width: int, seed: int) -> None:
    """On the very batch that was heard, the norms of training mode compute what those of evaluation do."""
    model = network(width, seed, traced=traced)
    x = torch.randn(16, 3, 8, 8) * 2 + 1
    before = model(x)
    moved = copy.deepcopy(model)
    assert rebase_norms_(moved, [(x, None)]) == 3
    torch.testing.assert_close(moved(x), before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved(x[:1] - 3), model(x[:1] - 3), rtol=1e-3, atol=1e-3)
    for norm in (module for module in moved.modules() if isinstance(module, nn.BatchNorm2d)):
        assert not norm._forward_pre_hooks
    if not traced and width > 1:
        stem = moved.get_submodule("stem")
        stem.train()
        torch.testing.assert_close(stem(x), model.get_submodule("stem")(x), rtol=1e-2, atol=1e-2)


def test_what_is_frozen_or_shared_is_left_alone() -> None:
    model = Normed(4).eval()
    for parameter in model.branch[1].parameters():
        parameter.requires_grad_(False)
    twin = nn.Sequential(model, nn.BatchNorm1d(4)).eval()
    assert isinstance(twin[1], nn.BatchNorm1d)
    twin[1].weight = model.last.weight
    held = copy.deepcopy(twin.state_dict())
    assert rebase_norms_(twin, [(torch.randn(8, 3, 8, 8), None)]) == 1
    changed = {name for name, value in twin.state_dict().items() if not torch.equal(value, held[name])}
    assert changed == {f"0.stem.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize("traced", [False, True])
def test_without_norms_no_batch_is_read(traced: bool) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    model = GraphModel(trace(plain, torch.zeros(2, 3, 8, 8))) if traced else plain
    unread = iter([(torch.randn(4, 3, 8, 8), None)])
    assert rebase_norms_(model, unread) == 0
    assert next(unread, None) is not None


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_the_first_step_loses_less(mixup: float) -> None:
    """From the original itself, whose statistics are those of clean images, on brighter and mixed ones."""
    torch.manual_seed(0)
    model = Normed(8).eval()
    clean = torch.randn(256, 3, 8, 8) * 2 * torch.rand(256, 1, 1, 1) + torch.randn(256, 3, 1, 1)
    recalibrate_(model, [clean])
    bright = list(torch.split(clean * 1.5 + 0.5, 64))
    lost = {}
    for samples in (0, 256):
        config = RecoverConfig.parse(
            {"max_steps": 1, "lr": 1e-6, "mixup": mixup, "losses": {"kd": 1.0}, "recalibrate": samples}
        )
        lost[samples] = recover(model, model, bright, config, seed=1).history[-1]["train_loss"]
    assert lost[256] < 0.6 * lost[0]
