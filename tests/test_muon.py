"""Muon: steps as long in every direction, and Adam where there is no matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.muon import Muon, orthogonal


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_singular_values_come_near_one_and_directions_stay(rows: int, columns: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=draw), full_matrices=False)
    values = torch.logspace(0, -2, min(rows, columns))
    found = orthogonal(u * values @ v)
    mixed = u.T @ found @ v.T
    torch.testing.assert_close(mixed, torch.diag(mixed.diagonal()), atol=1e-3, rtol=0)
    assert 0.6 < float(mixed.diagonal().min()) <= float(mixed.diagonal().max()) < 1.3


def test_nothing_comes_of_nothing() -> None:
    assert orthogonal(torch.zeros(3, 5)).eq(0).all()


def test_the_rate_is_the_size_of_a_step() -> None:
    weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    before = weight.detach().clone()
    weight.grad = 1e3 * torch.randn(8, 4, 3, 3)
    Muon([weight], lr=0.01).step()
    assert float((weight.detach() - before).square().mean().sqrt()) == pytest.approx(0.01, rel=0.25)


def test_vectors_and_depthwise_weights_go_by_adam() -> None:
    ours = [
        nn.Parameter(torch.randn(6)),
        nn.Parameter(torch.randn(6, 1, 3, 3)),
        nn.Parameter(torch.randn(())),
    ]
    theirs = copy.deepcopy(ours)
    one, other = Muon(ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    for seed in range(3):
        for pair in zip(ours, theirs, strict=True):
            grad = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(seed))
            for value in pair:
                value.grad = grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def _fitted(make: type[torch.optim.Optimizer]) -> float:
    """The error of a least-squares fit whose inputs vary thirty times as much one way as another."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(16, 16, generator=draw))[0] * torch.logspace(0, -1.5, 16)
    x = torch.randn(512, 16, generator=draw) @ mix.T
    truth = torch.randn(8, 16, generator=draw)
    weight = nn.Parameter(truth + 0.5 * torch.randn(8, 16, generator=draw))
    optimizer = make([weight], lr=0.05)  # type: ignore[call-arg]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)

    def loss() -> Tensor:
        error: Tensor = x @ (weight - truth).T
        return error.square().mean()

    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return float(loss().detach())


def test_it_fits_where_inputs_vary_little() -> None:
    assert _fitted(Muon) < 0.3 * _fitted(torch.optim.Adam)


def test_it_goes_on_from_its_state() -> None:
    def run(steps: int, weight: nn.Parameter, state: dict[str, object] | None, start: int) -> Muon:
        optimizer = Muon([weight], lr=0.01)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        for step in range(start, start + steps):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return optimizer

    whole = nn.Parameter(torch.ones(4, 6))
    run(4, whole, None, 0)
    halves = nn.Parameter(torch.ones(4, 6))
    state = run(2, halves, None, 0).state_dict()
    run(2, halves, state, 2)
    assert torch.equal(whole, halves)
