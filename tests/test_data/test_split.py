from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penjing.data import ArraySplit, Loader, glyphs, hold_out
from penjing.errors import DataError


def make_split(n: int = 23, channels: int = 3, classes: int = 4) -> ArraySplit:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, 5, 6, channels), dtype=np.uint8)
    return ArraySplit(images, np.arange(n) % classes, [f"c{i}" for i in range(classes)])


def jitter(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    return x_NCHW * torch.rand(len(x_NCHW), 1, 1, 1, generator=generator)


def collect(loader: Loader) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*loader, strict=True)
    return torch.cat(xs), torch.cat(ys)


@given(st.integers(1, 40), st.integers(1, 50), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_pass_gives_every_sample_once(n: int, batch_size: int, shuffle: bool) -> None:
    split = make_split(n)
    loader = Loader(split, batch_size, shuffle=shuffle)
    batches = list(loader)
    assert len(batches) == len(loader)
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert len(x) == n == loader.num_samples
    rows = sorted(map(tuple, (x.flatten(1) * 255).round().int().tolist()))
    assert rows == sorted(map(tuple, split.images.transpose(0, 3, 1, 2).reshape(n, -1).tolist()))
    assert sorted(y.tolist()) == sorted(split.labels.tolist())


def test_labels_stay_with_their_images() -> None:
    images = np.repeat(np.arange(30, dtype=np.uint8), 4).reshape(30, 2, 2, 1)
    split = ArraySplit(images, np.arange(30), [str(i) for i in range(30)])
    x, y = collect(Loader(split, 7, shuffle=True, seed=5))
    assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), y)
    assert not torch.equal(y, torch.arange(30))


def test_passes_are_the_same_whatever_was_iterated_before() -> None:
    loader = Loader(make_split(), 5, shuffle=True, seed=1, augment=jitter)
    first = collect(loader)
    loader.set_epoch(1)
    second = collect(loader)
    next(iter(loader))  # a pass broken off leaves nothing behind
    loader.set_epoch(0)
    assert all(map(torch.equal, collect(loader), first))
    assert not torch.equal(first[0], second[0])
    fresh = Loader(make_split(), 5, shuffle=True, seed=1, augment=jitter)
    fresh.set_epoch(1)
    assert all(map(torch.equal, collect(fresh), second))


def test_normalising_with_the_statistics_gives_zero_mean_unit_deviation() -> None:
    bundle = glyphs(per_class=(4, 1, 1), num_classes=10)
    x = torch.cat([x for x, _ in bundle.loader("train", 16)])
    assert x.mean().item() == pytest.approx(0, abs=1e-3)
    assert x.std().item() == pytest.approx(1, abs=1e-2)
    assert x.shape[1:] == bundle.image_shape
    assert x.dtype == torch.float32


def test_augmentation_sees_unit_range_before_normalising() -> None:
    seen: list[Tensor] = []

    def spy(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x_NCHW)
        return x_NCHW

    collect(Loader(make_split(), 8, augment=spy, mean=(0.5,), std=(0.1,)))
    assert all(0 <= x.min() <= x.max() <= 1 for x in seen)


def test_drop_last_leaves_full_batches() -> None:
    loader = Loader(make_split(23), 5, drop_last=True)
    assert [len(y) for _, y in loader] == [5] * 4
    assert loader.num_samples == 20


def test_split_is_map_style() -> None:
    split = make_split()
    image, label = split[-1]
    assert np.array_equal(image, split.images[-1])
    assert label == split.labels[-1]
    assert len(list(split)) == len(split)
    with pytest.raises(IndexError):
        split[len(split)]


def test_subset_and_load_keep_samples() -> None:
    split = make_split()
    view = split.subset([3, 1]).load()
    assert np.array_equal(view.images, split.images[[3, 1]])
    assert np.array_equal(view.labels, split.labels[[3, 1]])


@given(st.integers(8, 60), st.floats(0.05, 0.9), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_hold_out_parts_samples_and_keeps_every_class_on_both_sides(
    n: int, fraction: float, seed: int
) -> None:
    split = make_split(n, classes=4)
    train, val = hold_out(split, fraction, seed)
    together = np.concatenate([train.load().images, val.load().images]).reshape(n, -1)
    assert np.array_equal(np.unique(together, axis=0), np.unique(split.images.reshape(n, -1), axis=0))
    assert set(train.labels) == set(val.labels) == {0, 1, 2, 3}
    assert np.array_equal(hold_out(split, fraction, seed)[1].labels, val.labels)


@pytest.mark.parametrize(
    ("labels", "match"),
    [([0, 1, 4], "outside 0…3"), ([0, -1, 2], "outside"), ([0, 1], "3 images and 2 labels")],
)
def test_labels_that_do_not_fit_are_errors(labels: list[int], match: str) -> None:
    with pytest.raises(DataError, match=match):
        ArraySplit(np.zeros((3, 2, 2, 1), np.uint8), np.array(labels), list("abcd"))


def test_other_bad_input_is_an_error() -> None:
    with pytest.raises(DataError, match="not one sample"):
        ArraySplit(np.zeros((0, 2, 2, 1), np.uint8), np.array([], dtype=np.int64), list("ab"))
    with pytest.raises(DataError, match="float64"):
        ArraySplit(np.zeros((1, 2, 2, 1)), np.array([0]), list("ab"))
    with pytest.raises(DataError, match="batch_size is 0"):
        Loader(make_split(), 0)
    with pytest.raises(DataError, match="drop_last"):
        Loader(make_split(3), 5, drop_last=True)
    with pytest.raises(DataError, match="2 values for 3 channels"):
        Loader(make_split(), 5, mean=(0.1, 0.2))
    with pytest.raises(DataError, match="std"):
        Loader(make_split(), 5, std=(0.0,))
    with pytest.raises(DataError, match="no split 'eval'"):
        glyphs(per_class=(1, 1, 1), num_classes=2).loader("eval", 4)
