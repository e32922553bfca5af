from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from penjing.prune import prune
from penjing.prune.criteria.obs import _Reader, _Removal
from penjing.prune.reconstruct import ReconstructConfig, reconstruct


def reader(kernel: int = 1, channels: int = 6, outputs: int = 4, groups: int = 1) -> _Reader:
    generator = torch.Generator().manual_seed(0)
    features = channels * kernel
    root = torch.randn(groups, features, 3 * features, generator=generator, dtype=torch.float64)
    w = torch.randn(groups, outputs, features, generator=generator, dtype=torch.float64)
    return _Reader(w, root @ root.transpose(1, 2) / features, None, kernel)


def refit_error(given: _Reader, gone: list[int]) -> float:
    """Least-squares error left when the slots are gone and the rest is refitted, relative to the output."""
    assert given.cov_GFF is not None
    cov, w = given.cov_GFF[0], given.w_GOF[0]
    features = [slot * given.kernel + k for slot in gone for k in range(given.kernel)]
    rest = [f for f in range(len(cov)) if f not in features]
    schur = cov[features][:, features] - cov[features][:, rest] @ torch.linalg.solve(
        cov[rest][:, rest], cov[rest][:, features]
    )
    return float((w[:, features] @ schur * w[:, features]).sum() / (w @ cov * w).sum())


@pytest.mark.parametrize("kernel", [1, 3])
def test_costs_are_the_rise_of_the_error_after_the_best_refit(kernel: int) -> None:
    given = reader(kernel)
    removal = _Removal(given, np.arange(6)[:, None], ridge=0.0)
    gone: list[int] = []
    for slot in (4, 1, 3):
        costs = removal.costs()
        for other in set(range(6)) - set(gone):
            rise = refit_error(given, [*gone, other]) - (refit_error(given, gone) if gone else 0.0)
            assert costs[other] == pytest.approx(rise, rel=1e-6, abs=1e-9)
        removal.remove(slot)
        gone.append(slot)


def test_copies_go_first_and_the_refit_brings_the_function_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6))
    with torch.no_grad():  # units 6… are scaled copies of units 0…5, with large weights behind them
        first, second = model[0], model[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        factor = torch.tensor([3.0, 2.0, 1.5, 4.0, 2.5, 1.2])
        first.weight[6:] = factor[:, None] * first.weight[:6]
        first.bias[6:] = factor * first.bias[:6]
    data = [torch.randn(64, 10) for _ in range(4)]
    pruned = prune(model, data[0][:2], ratio=0.5, criterion={"name": "obs", "ridge": 1e-8}, data=data)
    kept = set(next(iter(pruned.plan.groups.values())).kept.tolist())
    assert {slot % 6 for slot in kept} == set(range(6))  # one of each pair stays
    refitted = reconstruct(pruned.model, model, pruned.plan, data, ReconstructConfig(ridges=(1e-9,)))
    x = torch.randn(20, 10)
    torch.testing.assert_close(refitted.model(x), model(x), rtol=1e-2, atol=1e-3)
    plain = prune(model, data[0][:2], ratio=0.5, criterion="magnitude")
    best = reconstruct(plain.model, model, plain.plan, data)
    assert refitted.error_after < 0.1 * best.error_after


def test_greedy_is_near_the_best_subset() -> None:
    given = reader()
    removal = _Removal(given, np.arange(6)[:, None], ridge=0.0)
    gone: list[int] = []
    for _ in range(2):
        costs = removal.costs()
        costs[gone] = np.inf
        gone.append(int(costs.argmin()))
        removal.remove(gone[-1])
    errors = [refit_error(given, list(pair)) for pair in itertools.combinations(range(6), 2)]
    assert refit_error(given, gone) <= sorted(errors)[2]


def test_where_all_weights_are_computed_magnitudes_decide() -> None:
    def layer(before: int, after: int) -> nn.Module:
        normed: nn.Module = weight_norm(nn.Linear(before, after))
        return normed

    model = nn.Sequential(layer(4, 8), nn.ReLU(), layer(8, 3)).eval()
    x = torch.randn(16, 4)
    by_error = prune(model, x[:2], criterion="obs", data=[x], reconstruct=True)
    assert by_error.plan.groups == prune(model, x[:2]).plan.groups
    assert by_error.reconstruction is not None
    assert by_error.reconstruction.notes  # which layers stay
