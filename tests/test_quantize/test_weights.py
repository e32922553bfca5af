from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penjing.quantize.cpu import sums_pairs_in_16_bits
from penjing.quantize.scheme import activation_params, fake_quantize
from penjing.quantize.weights import (
    PAIR_MAX,
    Guard,
    as_rows,
    choose_scale,
    from_rows,
    quantize_weight,
    round_rows,
    shrink_pairs,
)

SHAPES = [((8, 3, 3, 3), 0), ((6, 20), 0), ((20, 6), 1), ((4, 5, 1, 1), 0)]


def weight(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_rows_and_back_is_the_identity(shape: tuple[int, ...], axis: int) -> None:
    q = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    rows_OK = as_rows(q.astype(np.float32), axis).astype(np.int8)
    np.testing.assert_array_equal(from_rows(rows_OK, shape, axis), q)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_absmax_error_is_at_most_half_a_step(shape: tuple[int, ...], axis: int) -> None:
    w = weight(shape)
    q = quantize_weight(w, axis, method="absmax")
    steps = q.scale_O.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    assert np.all(np.abs(q.dequantized() - w) <= steps * 0.5001)
    assert np.abs(q.q.astype(int)).max() == 127


@pytest.mark.parametrize("guard", ["off", "pairs", "full"])
def test_mse_is_never_worse_than_absmax(guard: str) -> None:
    w = weight((16, 8, 3, 3), seed=4)
    w[0, 0, 0, 0] = 12.0
    errors = [
        np.square(quantize_weight(w, 0, method=method, guard=guard).dequantized() - w).sum()  # type: ignore[arg-type]
        for method in ("absmax", "mse")
    ]
    assert errors[1] <= errors[0] * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), method=st.sampled_from(["absmax", "mse"]))
def test_no_pair_overflows_sixteen_bits(seed: int, size: int, method: str) -> None:
    spread = np.random.default_rng(seed).choice([0.01, 1.0, 9.0], (5, size)).astype(np.float32)
    w = weight((5, size), seed) * spread
    q = quantize_weight(w, 0, method=method, guard="pairs").q.astype(int)  # type: ignore[arg-type]
    even = q[:, : size - size % 2]
    assert np.abs(even[:, ::2] + even[:, 1::2]).max(initial=0) <= PAIR_MAX
    assert np.iinfo(np.int16).max >= 255 * PAIR_MAX


@settings(max_examples=50, deadline=None)
@given(first=st.integers(-127, 127), second=st.integers(-127, 127))
def test_shrinking_a_pair_is_the_nearest_feasible_point(first: int, second: int) -> None:
    got = shrink_pairs(np.array([[first, second]], np.float64))[0]
    grid = np.stack(np.meshgrid(np.arange(-127, 128), np.arange(-127, 128)), -1).reshape(-1, 2)
    feasible = grid[np.abs(grid.sum(axis=1)) <= PAIR_MAX]
    best = np.square(feasible - [first, second]).sum(axis=1).min()
    assert np.square(got - [first, second]).sum() == best
    assert abs(got.sum()) <= PAIR_MAX


def test_pairs_lose_less_than_seven_bits() -> None:
    w = weight((64, 64, 3, 3), seed=9)
    errors = {
        guard: np.square(quantize_weight(w, 0, guard=guard).dequantized() - w).sum()
        for guard in ("off", "pairs", "full")
    }
    assert errors["off"] <= errors["pairs"] < 0.8 * errors["full"]


def test_a_zero_channel_is_stored_exactly() -> None:
    w = weight((4, 6))
    w[2] = 0.0
    q = quantize_weight(w, 0, guard="pairs")
    assert np.isfinite(q.scale_O).all()
    assert not q.dequantized()[2].any()


@given(low=st.floats(-1e4, 1e4), high=st.floats(-1e4, 1e4))
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    params = activation_params(low, high)
    assert fake_quantize(np.zeros(1), params)[0] == 0.0
    assert 0 <= params.zero_point <= 255
    step = params.scale
    assert params.low <= min(low, 0.0) + step
    assert params.high >= max(high, 0.0) - step


@pytest.mark.parametrize(
    ("flags", "machine", "saturates"),
    [
        ("fpu avx2 fma", "x86_64", True),
        ("fpu avx2 avx512_vnni", "x86_64", False),
        ("fpu avx2 avx_vnni", "AMD64", False),
        ("fp asimd", "aarch64", False),
    ],
)
def test_cpu_flags(tmp_path: Path, flags: str, machine: str, saturates: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name: x\nflags\t\t: {flags}\n")
    assert sums_pairs_in_16_bits(cpuinfo, machine) is saturates


def test_an_unknown_x86_counts_as_saturating(tmp_path: Path) -> None:
    assert sums_pairs_in_16_bits(tmp_path / "absent", "x86_64")


@pytest.mark.parametrize("guard", ["off", "pairs", "full"])
@pytest.mark.parametrize("top", [127, 7])
@pytest.mark.parametrize("power", [-110, -45, 45, 100])
def test_steps_follow_the_size_of_weights(guard: Guard, top: int, power: int) -> None:
    """Squared errors of weights of 1e27 are not numbers of float32, and those of 1e-25 are zero."""
    rows_OK = np.random.default_rng(0).standard_t(3, (8, 30)).astype(np.float32)
    rows_OK[3] = 0
    steps_O = choose_scale(rows_OK, "mse", guard, None, top)
    sized_OK = np.ldexp(rows_OK, power)
    sized_O = choose_scale(sized_OK, "mse", guard, None, top)
    filled_O = rows_OK.any(axis=1)
    assert np.array_equal(np.ldexp(steps_O, power)[filled_O], sized_O[filled_O])
    assert np.array_equal(round_rows(rows_OK, steps_O, guard, top), round_rows(sized_OK, sized_O, guard, top))
