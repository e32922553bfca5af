from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from penjing.data import ArraySplit, glyphs
from penjing.errors import MeasureError
from penjing.measure import robustness, size_bytes
from penjing.measure.robustness import CORRUPTIONS, CorruptedSplit


@pytest.fixture(scope="module")
def split() -> ArraySplit:
    test = glyphs(per_class=(1, 1, 6), num_classes=5).test
    assert isinstance(test, ArraySplit)
    return test


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_whatever_it_is_fetched_with(name: str, split: ArraySplit) -> None:
    view = CorruptedSplit(split, name, 2, seed=1)
    everything = view.fetch(np.arange(len(split)))
    assert np.array_equal(everything[[7, 3]], view.fetch(np.array([7, 3])))
    assert everything.dtype == np.uint8
    assert everything.shape == split.images.shape


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_grows(name: str, split: ArraySplit) -> None:
    indices = np.arange(len(split))
    errors = [
        np.abs(CorruptedSplit(split, name, severity).fetch(indices) - split.images.astype(float)).mean()
        for severity in (1, 2, 3)
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_colour_images_keep_their_shape(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    view = CorruptedSplit(ArraySplit(images, np.zeros(2, int), "a"), name, 1)
    assert view.fetch(np.arange(2)).shape == images.shape


def test_contrast_leaves_the_mean(split: ArraySplit) -> None:
    low = CorruptedSplit(split, "contrast", 3).fetch(np.arange(len(split)))
    assert np.allclose(low.mean(axis=(1, 2, 3)), split.images.mean(axis=(1, 2, 3)), atol=1)
    assert (low.std(axis=(1, 2, 3)) < 0.3 * split.images.std(axis=(1, 2, 3)) + 1).all()


def test_a_matcher_of_clean_images_loses_on_corrupted_ones(split: ArraySplit) -> None:
    known = torch.from_numpy(split.images).flatten(1).float() / 255
    labels = torch.from_numpy(split.labels)

    def predict(x_NCHW: Tensor) -> Tensor:
        exact = (x_NCHW.flatten(1)[:, None] - known).abs().amax(dim=2) < 1e-6
        return exact.float() @ torch.nn.functional.one_hot(labels, 5).float() + torch.tensor(
            [0.1, 0, 0, 0, 0]
        )

    found = robustness(predict, split, corruptions=("noise", "blur"))
    assert found.clean.value == 1
    assert set(found.corrupted) == {"noise", "blur"}
    assert found.mean == pytest.approx(0.2)
    assert found.to_dict()["corrupted"]["blur"]["n"] == 30


def test_unknown_corruptions_are_errors(split: ArraySplit) -> None:
    with pytest.raises(MeasureError, match="'fog'"):
        robustness(lambda x: x, split, corruptions=("fog",))
    with pytest.raises(MeasureError, match="severity 4"):
        robustness(lambda x: x, split, severity=4)
    with pytest.raises(MeasureError, match="no corruption"):
        robustness(lambda x: x, split, corruptions=())


def test_sizes_are_bytes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "a").write_bytes(b"12345")
    (tmp_path / "d" / "sub" / "b").write_bytes(b"123")
    assert size_bytes(tmp_path / "d" / "a") == 5
    assert size_bytes(tmp_path / "d") == 8
    with pytest.raises(MeasureError, match="no file"):
        size_bytes(tmp_path / "missing")


def test_a_network_with_channels_last_gets_them_last(split: ArraySplit) -> None:
    shapes = set()

    def predict(x: Tensor) -> Tensor:
        shapes.add(tuple(x.shape[1:]))
        return torch.eye(5)[torch.zeros(len(x), dtype=torch.int64)]

    robustness(predict, split, corruptions=("contrast",), layout="nhwc")
    assert shapes == {split.image_shape}
