from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penjing.batches import between
from penjing.data import ArraySplit, DataBundle
from penjing.errors import DataError
from penjing.recipe.compress import as_bundle
from penjing.recipe.feed import Feed, Take, layout_of
from penjing.recipe.schema import DataConfig


def bundle(num: int = 10) -> Any:
    images = np.arange(num * 2 * 3 * 3).reshape(num, 2, 3, 3).astype(np.uint8)
    split = ArraySplit(images, np.arange(num) % 2, ("a", "b"))
    return DataBundle(split, split, split, ("a", "b"), (0.5,) * 3, (0.25,) * 3, (3, 2, 3))


def feed(**changes: Any) -> Any:
    options = {"layout": "nchw", "seed": 0, **changes}
    config = DataConfig(spec="x", batch_size=4, eval_batch_size=4, **options.pop("config", {}))
    return Feed(config, bundle(), **options)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 30))
def test_take_gives_the_first_samples(sizes: Any, limit: Any) -> None:
    flat = torch.arange(sum(sizes))
    batches = list(torch.split(flat, sizes))
    taken = torch.cat([x for x, _ in Take([(b, b) for b in batches], limit)])
    assert torch.equal(taken, flat[:limit])


def test_limit_is_spread_evenly_and_in_order() -> None:
    (labels,) = [y for _, y in feed().split("train", 4)]
    assert labels.tolist() == [0, 1, 0, 1]
    assert sum(len(y) for _, y in feed().split("train")) == 10


@given(st.integers(2, 4), st.integers(60, 90), st.integers(40, 600), st.integers(0, 3))
def test_the_first_of_the_calibration_are_of_every_class(
    classes: Any, each: Any, limit: Any, seed: Any
) -> None:
    labels = np.repeat(np.arange(classes), each)  # as a folder lists them
    images = np.arange(len(labels) * 3).reshape(-1, 1, 1, 3).astype(np.uint8)
    split = ArraySplit(images, labels, [str(one) for one in range(classes)])
    sorted_by_class = DataBundle(split, split, None, split.classes, (0.0,) * 3, (1.0,) * 3, (3, 1, 1))
    feed = Feed(DataConfig(spec="x", calibration=limit), sorted_by_class, layout="nchw", seed=seed)
    found = torch.cat([y for _, y in feed.calibration()])
    assert set(found[: 20 * classes].tolist()) == set(range(classes))
    assert torch.equal(found, torch.cat([y for _, y in feed.calibration()]))
    in_order = torch.cat([y for _, y in feed.split("train", limit)])
    assert torch.equal(found.sort().values, in_order)


def test_layouts_hold_the_same_numbers() -> None:
    for (x, y), (turned, same) in zip(feed().split("val"), feed(layout="nhwc").split("val"), strict=True):
        assert torch.equal(x.permute(0, 2, 3, 1), turned)
        assert torch.equal(y, same)


def test_wrapped_loader_keeps_epochs() -> None:
    wrapped = feed(layout="nhwc").train()
    wrapped.set_epoch(1)
    first = torch.cat([y for _, y in wrapped])
    wrapped.set_epoch(2)
    second = torch.cat([x.flatten(1)[:, 0] for x, _ in wrapped])
    wrapped.set_epoch(1)
    assert torch.equal(torch.cat([y for _, y in wrapped]), first)
    assert len(wrapped) == 3
    assert len(second) == 10


IMAGENET = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
MEASURED = {"mean": (0.5,) * 3, "std": (0.25,) * 3}  # of the bundle
UNIT = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize(
    ("config", "known", "statistics"),
    [
        ({}, {}, UNIT),
        ({}, {"source": IMAGENET}, IMAGENET),
        ({}, {"source": {"mean": (0.5,), "std": (0.5,)}}, UNIT),  # of another number of channels
        ({}, {"source": IMAGENET, "trains": True}, MEASURED),
        ({"options": {"mean": [0.5] * 3}}, {"source": IMAGENET}, MEASURED),
        ({"spec": "data.py:bundle"}, {"source": IMAGENET}, MEASURED),
        ({"normalize": "unit"}, {"source": IMAGENET, "trains": True}, UNIT),
        ({"normalize": "mean_std"}, {"source": IMAGENET}, MEASURED),
        ({"normalize": "model"}, {"source": IMAGENET, "trains": True}, IMAGENET),
    ],
)
def test_images_are_normalised_as_somebody_says(config: Any, known: Any, statistics: Any) -> None:
    """The data's options, the user's own bundle, the recipe's training, the model's source, in this order."""
    made = Feed(DataConfig(**{"spec": "x", **config}), bundle(), layout="nchw", seed=0, **known)
    assert made.normalize == statistics
    unit = next(iter(feed(config={"normalize": "unit"}).split("val", 4)))[0]
    assert 0 <= float(unit.min()) <= float(unit.max()) <= 1
    mean, std = (torch.tensor(statistics[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close((unit - mean) / std, next(iter(made.split("val", 4)))[0])


def test_a_source_that_says_nothing_is_named() -> None:
    with pytest.raises(DataError, match="images of 3 channels"):
        feed(config={"normalize": "model"})


@pytest.mark.parametrize(
    ("inputs", "layout"),
    [
        (torch.zeros(1, 3, 2, 3), "nchw"),
        (torch.zeros(1, 2, 3, 3), "nhwc"),
        ((torch.zeros(1, 2, 3, 3),), "nhwc"),
        ({"image": torch.zeros(1, 2, 3, 3)}, "nhwc"),
        (None, "nchw"),
    ],
)
def test_layout_by_the_models_inputs(inputs: Any, layout: Any) -> None:
    assert layout_of(inputs, bundle()) == layout


def test_a_network_of_raw_pixels_is_not_fed_floats() -> None:
    """Pixels in [0, 1] as integers would all be zero, and as floats another network would be compressed."""
    pixels = torch.zeros(1, 3, 2, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match="takes them as uint8"):
        layout_of(pixels, bundle())
    own = replace(bundle(), train=[(pixels, torch.zeros(1))])  # the user's own batches may be of any type
    assert layout_of(pixels, own) == "nchw"


def test_cut_reaches_into_structures() -> None:
    x = torch.arange(4)
    assert between({"a": (x, [x])}, 0, 2)["a"][1][0].tolist() == [0, 1]


@pytest.mark.parametrize(
    "data", [(1,), ([], [], [], []), {"train": []}, {"train": [], "val": [], "extra": []}]
)
def test_loaders_of_the_wrong_number(data: Any) -> None:
    with pytest.raises(DataError):
        as_bundle(data)


def test_generators_are_refused() -> None:
    with pytest.raises(DataError, match="only once"):
        as_bundle((iter([1]), [1]))


def test_statistics_are_tried_only_where_nobody_says_how_images_are_fed() -> None:
    guessed = feed().by_statistics
    assert (feed().bundle.mean, guessed.bundle.mean, guessed.bundle.std) == (
        (0.0,) * 3,
        (0.5,) * 3,
        (0.25,) * 3,
    )
    told = {"mean": (0.1,) * 3, "std": (0.2,) * 3}
    for said in ({"source": told}, {"trains": True}, {"config": {"normalize": "unit"}}):
        assert feed(**said).by_statistics is None
    assert guessed.by_statistics is None
