from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penjing.quantize.observe import make_observer, observers
from penjing.quantize.observe.histogram import Histogram
from penjing.quantize.observe.mse import MeanSquaredError
from penjing.quantize.observe.percentile import Percentile
from penjing.quantize.scheme import activation_params, fake_quantize

NAMES = ["entropy", "min_max", "moving_average", "mse", "percentile"]


def samples(seed: int, count: int = 12, size: int = 500) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    scale = draw.uniform(0.1, 30.0, (count, 1))  # growing and shrinking ranges make the histogram re-bin
    return (draw.standard_t(3, (count, size)) * scale).astype(np.float32)


def test_registry_finds_every_observer() -> None:
    assert sorted(observers()) == NAMES


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, 11), max_size=5))
def test_the_split_into_batches_does_not_matter(name: str, seed: int, cuts: set[int]) -> None:
    x_NK = samples(seed)
    whole, parts = make_observer(name), make_observer(name)
    whole.update(x_NK)
    for part in np.split(x_NK, sorted(cuts)):
        parts.update(part)
    assert whole.range() == parts.range()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "moving_average"])
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    x_NK = samples(5)
    forward, backward = make_observer(name), make_observer(name)
    forward.update(x_NK)
    for row in x_NK[::-1]:
        backward.update(row[None])
    assert forward.range() == backward.range()


@pytest.mark.parametrize("name", NAMES)
def test_ranges_stay_within_what_was_heard(name: str) -> None:
    x_NK = samples(2)
    observer = make_observer(name)
    observer.update(x_NK)
    low, high = observer.range()
    assert x_NK.min() <= low < high <= x_NK.max()


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    cut=st.integers(0, 60),
)
def test_histogram_growth_is_exact(values: list[float], cut: int) -> None:
    """Merging bins gives the counts of binning everything at the final width."""
    x = np.array(values, np.float64)
    grown = Histogram()
    grown.add(x[:cut])
    grown.add(x[cut:])
    at_once = Histogram()
    at_once.add(x)
    assert grown.exponent == at_once.exponent
    np.testing.assert_array_equal(grown.counts, at_once.counts)
    direct = np.bincount(np.floor(x / grown.width).astype(np.int64) + 4096, minlength=8192)
    np.testing.assert_array_equal(grown.counts, direct)


def test_histogram_memory_is_fixed() -> None:
    histogram = Histogram()
    for seed in range(30):
        histogram.add(samples(seed))
    assert histogram.counts.nbytes == 8192 * 8
    assert histogram.counts.sum() == 30 * 12 * 500


def test_percentile_equals_numpy_within_a_bin() -> None:
    x_NK = samples(7, count=40, size=5000)
    observer = Percentile()
    for row in x_NK:
        observer.update(row[None])
    low, high = observer.range()
    tail = 100 - Percentile.percent
    assert abs(low - np.percentile(x_NK, tail, method="inverted_cdf")) <= observer.histogram.width
    assert abs(high - np.percentile(x_NK, 100 - tail, method="inverted_cdf")) <= observer.histogram.width


def test_mse_is_as_good_as_an_exhaustive_search() -> None:
    x = samples(3, count=1, size=20000)
    observer = MeanSquaredError()
    observer.update(x)

    def error(low: float, high: float) -> float:
        return float(np.square(fake_quantize(x, activation_params(low, high)) - x).mean())

    best = min(
        error(x.min() * a, x.max() * b) for a in np.linspace(0.04, 1, 49) for b in np.linspace(0.04, 1, 49)
    )
    assert error(*observer.range()) <= best * 1.05
    assert error(*observer.range()) < error(float(x.min()), float(x.max()))


def test_entropy_clips_a_lone_outlier_but_not_the_bulk() -> None:
    x = np.abs(np.random.default_rng(0).normal(size=(1, 50_000))).astype(np.float32)
    x[0, :25_000] = 0.0
    x[0, -1] = 60.0
    observer = make_observer("entropy")
    observer.update(x)
    low, high = observer.range()
    assert low == 0.0
    assert 2.0 < high < 20.0


def test_moving_average_starts_as_a_mean() -> None:
    observer = make_observer("moving_average")
    observer.update(np.array([[0.0, 1.0], [-2.0, 3.0]], np.float32))
    assert observer.range() == (-1.0, 2.0)
