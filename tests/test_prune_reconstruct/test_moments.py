from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from penjing.graph import trace
from penjing.prune.least_squares import fit_moments, fit_samples
from penjing.prune.moments import Moments, Patches, error, thin_out
from penjing.prune.places import find_places


def rows(seed: int, n: int = 60, features: int = 7, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_RF = torch.randn(n, features, generator=generator, dtype=torch.float64) + 2
    w_OF = torch.randn(outputs, features, generator=generator, dtype=torch.float64)
    noise_RO = 0.1 * torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return x_RF, x_RF @ w_OF.T + 3 + noise_RO


def moments_of(x_RF: torch.Tensor, r_RO: torch.Tensor) -> Moments:
    moments = Moments(1, x_RF.shape[1], r_RO.shape[1])
    moments.add(x_RF[None], r_RO[None])
    return moments


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("n", [2, 5, 60])
def test_inputs_that_hardly_vary_about_large_means_are_fitted_all_the_same(spread: float, n: int) -> None:
    """Their covariance is rounding error, of either sign."""
    x, r = rows(0, n, features=40)
    x = 1e3 * torch.linspace(1, 2, 40, dtype=x.dtype) + spread * x
    whole = moments_of(x, r)
    fit = fit_moments(whole, whole, [1e-8, 1e-3], torch.ones(1, 3, dtype=x.dtype), True)
    assert fit.change_GOF is None or bool(fit.change_GOF.isfinite().all())
    assert fit.after <= fit.before


@given(st.integers(0, 1000), st.integers(1, 59))
@settings(max_examples=20, deadline=None)
def test_streaming_and_adding_equal_all_at_once(seed: int, cut: int) -> None:
    x, r = rows(seed)
    whole, streamed = moments_of(x, r), moments_of(x[:cut], r[:cut])
    summed = moments_of(x[:cut], r[:cut]) + moments_of(x[cut:], r[cut:])
    streamed.add(x[None, cut:], r[None, cut:])
    for name in ("x_GF", "r_GO", "xx_GFF", "rx_GOF", "rr_GO"):
        torch.testing.assert_close(getattr(streamed, name), getattr(whole, name))
        torch.testing.assert_close(getattr(summed, name), getattr(whole, name))
    assert streamed.count == summed.count == len(x)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_error_from_moments_is_the_error_of_the_rows(seed: int) -> None:
    x, r = rows(seed)
    change, shift = torch.randn(1, 3, 7, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    direct = (r - x @ change[0].T - shift).square().sum(0)
    torch.testing.assert_close(error(moments_of(x, r), change, shift)[0], direct)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_solution_is_the_least_squares_solution(intercept: bool) -> None:
    x, r = rows(0)
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if intercept else x
    expected = torch.linalg.lstsq(design, r).solution.T
    found = moments_of(x, r).centred(intercept).solve(1e-14)[0]
    torch.testing.assert_close(found, expected[:, :7], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-4, 1e-1, 10.0])
@pytest.mark.parametrize("intercept", [True, False])
def test_moments_and_samples_give_the_same_fit(ridge: float, intercept: bool) -> None:
    x, r = rows(1)
    held = torch.arange(len(x)) >= 48
    by_moments = fit_moments(
        moments_of(x[~held], r[~held]),
        moments_of(x[held], r[held]),
        [ridge],
        torch.ones(1, 3).double(),
        intercept,
    )
    by_samples = fit_samples(x, r, held, [ridge], torch.ones(3).double(), intercept)
    assert by_moments.ridge == by_samples.ridge == ridge
    assert by_moments.change_GOF is not None
    assert by_samples.change_GOF is not None
    torch.testing.assert_close(by_moments.change_GOF, by_samples.change_GOF, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(by_moments.shift_GO, by_samples.shift_GO, rtol=1e-6, atol=1e-8)
    assert by_moments.after == pytest.approx(by_samples.after, rel=1e-6)
    assert by_moments.before == pytest.approx(by_samples.before, rel=1e-9)


def test_noise_is_not_fitted() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    r = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    held = torch.arange(40) >= 32
    fit = fit_samples(x, r, held, [1e-6], torch.ones(2).double(), True)
    assert fit.change_GOF is None
    assert fit.after <= fit.before


@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 2)]),
    stride=st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    padding=st.sampled_from([(0, 0), (1, 1), (1, 0)]),
    dilation=st.sampled_from([(1, 1), (2, 2)]),
    groups=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40, deadline=None)
def test_rows_times_weights_are_the_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 9, 8, generator=generator)
    w = torch.randn(12, 8 // groups, *kernel, generator=generator)
    y = F.conv2d(x, w, None, stride, padding, dilation, groups)
    sides = tuple((side, side) for side in padding)
    patches = Patches(kernel, stride, sides, dilation, groups)
    positions = thin_out(patches.num_positions(y), 7, generator)
    for chosen in (None, positions):
        x_GRF, y_GRO = patches.inputs(x, chosen), patches.outputs(y, chosen)
        w_GOF = w.reshape(groups, 12 // groups, -1)
        torch.testing.assert_close(x_GRF @ w_GOF.transpose(1, 2), y_GRO, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid", 2])
@pytest.mark.parametrize(
    ("size", "spread", "stride"), [(3, 1, 1), (4, 1, 1), (2, 3, 1), (3, 2, 2), (1, 1, 2)]
)
def test_every_convolution_that_a_network_calls(
    rank: int, padding: str | int, size: int, spread: int, stride: int
) -> None:
    stride = 1 if padding == "same" else stride  # PyTorch has no other
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    conv = kind(4, 6, size, stride, padding, spread, groups=2).eval()
    x = torch.randn(3, 4, *(9, 8, 7)[:rank])
    place = find_places(trace(conv, x))["weight"]
    y = conv(x) - conv.bias.reshape(-1, *[1] * rank)  # type: ignore[union-attr]
    w_GOF = conv.weight.reshape(2, 3, -1)
    positions = thin_out(place.patches.num_positions(y), 5, torch.Generator())
    for chosen in (None, positions):
        x_GRF, y_GRO = place.patches.inputs(x, chosen), place.patches.outputs(y, chosen)
        torch.testing.assert_close(x_GRF @ w_GOF.transpose(1, 2), y_GRO, rtol=1e-4, atol=1e-4)
