"""A fit that looks through the ReLU behind a layer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.graph import trace
from penjing.prune.least_squares import Fit, fit_moments
from penjing.prune.moments import Moments
from penjing.prune.places import find_places
from penjing.prune.rectified import Range, Rows, fit_rectified

_RIDGES = (1e-9,)


def draw(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(learn: Rows, held: Rows, scale_GO: Tensor, *, intercept: bool = True) -> Fit:
    """The fit that does not look."""

    def moments(rows: Rows) -> Moments:
        groups, _, features = rows.x_GRF.shape
        made = Moments(groups, features, rows.y_GRO.shape[2])
        made.add(rows.x_GRF, rows.target_GRO - rows.y_GRO)
        return made

    return fit_moments(moments(learn), moments(held), _RIDGES, scale_GO.square(), intercept)


def missed(rows: Rows, fit: Fit, scale_GO: Tensor, bounds: Range) -> float:
    """Squared error of what the activation passes."""
    assert fit.change_GOF is not None
    y_GRO = rows.y_GRO + (rows.x_GRF @ fit.change_GOF.transpose(1, 2)) + fit.shift_GO[:, None]
    passed = [
        (scale_GO[:, None] * each + rows.offset_GRO).clamp(bounds.low, bounds.high)
        for each in (y_GRO, rows.target_GRO)
    ]
    return float((passed[0] - passed[1]).square().sum())


class TestRange:
    @given(
        seed=st.integers(0, 1000),
        bounds=st.sampled_from([Range(), Range(0.0, 6.0), Range(-1.0, 0.5), Range(-math.inf, math.inf)]),
    )
    def test_nearest_that_does_as_well(self, seed: int, bounds: Range) -> None:
        target, value = 5 * draw(200, seed=seed), 5 * draw(200, seed=seed + 1)
        near = bounds.nearest(target, value)
        assert torch.equal(near.clamp(bounds.low, bounds.high), target.clamp(bounds.low, bounds.high))
        assert bool(((near - value).abs() <= (target - value).abs()).all())
        alike = value.clamp(bounds.low, bounds.high) == target.clamp(bounds.low, bounds.high)
        assert torch.equal(near[alike], value[alike])
        assert torch.equal(bounds.nearest(target, near), near)


class TestFit:
    @staticmethod
    def rows(seed: int, count: int = 600, groups: int = 2, part: int = 0) -> tuple[Rows, Tensor]:
        """Targets that weights reach exactly, but for arbitrary values where the ReLU cuts them off."""
        x_GRF = draw(groups, count, 5, seed=seed + 1000 * part)
        wanted_GFO, given_GFO = draw(groups, 5, 3, seed=seed + 1), draw(groups, 5, 3, seed=seed + 2)
        scale_GO = torch.tensor([[0.5, -2.0, 1.5]] * groups, dtype=torch.float64)
        offset_GRO = 0.3 * draw(groups, count, 3, seed=seed + 3)
        exact = x_GRF @ wanted_GFO + 0.2
        off = scale_GO[:, None] * exact + offset_GRO <= 0
        anything = (-3 * draw(groups, count, 3, seed=seed + 4).abs() - offset_GRO) / scale_GO[:, None]
        target = torch.where(off, anything, exact)
        return Rows(x_GRF, x_GRF @ given_GFO, target, offset_GRO), scale_GO

    @given(seed=st.integers(0, 1000))
    def test_finds_the_weights_that_pass_the_same(self, seed: int) -> None:
        learn, scale_GO = self.rows(seed)
        held, bounds = self.rows(seed, part=1)[0], Range()
        blind = plain(learn, held, scale_GO)
        seeing = fit_rectified(blind, learn, held, scale_GO, bounds, intercept=True)
        assert missed(learn, seeing, scale_GO, bounds) < 0.05 * missed(learn, blind, scale_GO, bounds)
        assert seeing.after < 0.05 * seeing.before

    @given(seed=st.integers(0, 1000), intercept=st.booleans())
    def test_never_worse_than_the_plain_fit_on_held_back_rows(self, seed: int, intercept: bool) -> None:
        learn, scale_GO = self.rows(seed, count=40)
        noise = draw(*learn.target_GRO.shape, seed=seed + 7)
        learn = Rows(learn.x_GRF, learn.y_GRO, learn.target_GRO + noise, learn.offset_GRO)
        held = self.rows(seed, count=60, part=1)[0]
        blind = plain(learn, held, scale_GO, intercept=intercept)
        if blind.ridge is None:
            return
        seeing = fit_rectified(blind, learn, held, scale_GO, Range(), intercept=intercept)
        assert seeing.after <= blind.after * (1 + 1e-4)
        if not intercept:
            assert not seeing.shift_GO.any()

    def test_without_bounds_it_is_the_plain_fit(self) -> None:
        learn, scale_GO = self.rows(0)
        held = self.rows(0, part=1)[0]
        blind = plain(learn, held, scale_GO)
        seeing = fit_rectified(blind, learn, held, scale_GO, Range(-math.inf, math.inf), intercept=True)
        assert blind.change_GOF is not None
        assert seeing.change_GOF is not None
        torch.testing.assert_close(seeing.change_GOF, blind.change_GOF, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seeing.shift_GO, blind.shift_GO, rtol=1e-4, atol=1e-5)

    def test_outputs_that_a_norm_switches_off_are_fitted_plainly(self) -> None:
        learn, scale_GO = self.rows(3)
        held, off = self.rows(3, part=1)[0], scale_GO * torch.tensor([1.0, 0.0, 1.0])
        blind = plain(learn, held, scale_GO)
        seeing = fit_rectified(blind, learn, held, off, Range(), intercept=True)
        assert blind.change_GOF is not None
        assert seeing.change_GOF is not None
        torch.testing.assert_close(seeing.change_GOF[:, 1], blind.change_GOF[:, 1], rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.act, self.out = nn.Conv2d(8, 3, 3, padding=1), act, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.norm(self.one(x)))
        out: Tensor = self.out(self.act(x + self.two(inner)).mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("act", "bounds"),
    [
        (nn.ReLU(), Range()),
        (nn.ReLU(inplace=True), Range()),
        (nn.ReLU6(), Range(0.0, 6.0)),
        (nn.SiLU(), None),
    ],
)
def test_which_activation_stands_behind_a_layer(act: nn.Module, bounds: Range | None) -> None:
    places = find_places(trace(Residual(act).eval(), torch.zeros(2, 3, 8, 8)))
    assert places["one.weight"].behind.bounds == bounds  # behind the norm
    assert places["two.weight"].behind.bounds == bounds  # behind the sum
    assert places["out.weight"].behind.bounds is None
