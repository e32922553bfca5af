from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

from penjing.data import ArraySplit, DataBundle, Split, contact_sheet, glyphs
from penjing.data.glyphs import CLASSES, FACES
from penjing.errors import DataError


@pytest.fixture(scope="module")
def small() -> DataBundle:
    return glyphs(seed=3, per_class=(8, 4, 4))


def test_there_are_100_distinct_classes() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 100


def test_no_two_classes_are_cases_of_one_letter_of_one_shape() -> None:
    same_shape = "ckopsuvwxz"
    for letter in same_shape:
        assert not (letter in CLASSES and letter.upper() in CLASSES)


def test_no_typeface_is_in_two_splits() -> None:
    faces = [face for split in FACES.values() for face in split]
    assert len(faces) == len(set(faces)) == 16
    families = [
        {
            face.partition("-")[0].removesuffix("BolIta").removesuffix("Bol").removesuffix("Italic")
            for face in split
        }
        for split in FACES.values()
    ]
    assert not families[0] & families[1]
    assert not families[0] & families[2]
    assert not families[1] & families[2]


@pytest.mark.parametrize("face", [face for split in FACES.values() for face in split])
def test_every_face_has_every_glyph(face: str) -> None:
    with TTFont(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf") as font:
        cmap = font.getBestCmap()
    assert not [glyph for glyph in CLASSES if ord(glyph) not in cmap]


def test_same_seed_same_bytes_and_another_seed_others(small: DataBundle) -> None:
    again, other = glyphs(seed=3, per_class=(8, 4, 4)), glyphs(seed=4, per_class=(8, 4, 4))
    for one, two, three in zip(_splits(small), _splits(again), _splits(other), strict=True):
        assert np.array_equal(one.images, two.images)
        assert np.array_equal(one.labels, two.labels)
        assert not np.array_equal(one.images, three.images)


def test_every_class_has_its_share_and_the_order_is_mixed(small: DataBundle) -> None:
    for split, count in zip(_splits(small), (8, 4, 4), strict=True):
        assert (np.bincount(split.labels, minlength=100) == count).all()
        assert (np.diff(split.labels) < 0).any()
        assert split.image_shape == (32, 32, 1)
        assert split.images.dtype == np.uint8


def test_statistics_are_those_of_training(small: DataBundle) -> None:
    images = _splits(small)[0].images / 255.0
    assert small.mean[0] == pytest.approx(images.mean(), abs=1e-5)
    assert small.std[0] == pytest.approx(images.std(), abs=1e-5)


def test_images_show_their_class() -> None:
    """Nearest class mean over training already tells unseen typefaces apart far above the 5% of chance."""
    bundle = glyphs(per_class=(24, 1, 8), num_classes=20)
    train, _, test = _splits(bundle)
    means = np.stack([train.images[train.labels == c].mean(axis=0).ravel() for c in range(20)])
    means = means - means.mean(axis=1, keepdims=True)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    guesses = (test.images.reshape(len(test), -1) @ means.T).argmax(axis=1)
    assert (guesses == test.labels).mean() > 0.4


def test_contact_sheet_shows_each_class(small: DataBundle) -> None:
    sheet = contact_sheet(_splits(small)[0], columns=10, samples=2, zoom=1)
    assert sheet.size == (10 * 34, 20 * 34)


@pytest.mark.parametrize("options", [{"num_classes": 1}, {"num_classes": 101}, {"per_class": (0, 1, 1)}])
def test_counts_out_of_range_are_errors(options: dict[str, object]) -> None:
    with pytest.raises(DataError):
        glyphs(**options)  # type: ignore[arg-type]


def _splits(bundle: DataBundle) -> list[ArraySplit]:
    splits: list[ArraySplit] = []
    for split in (bundle.train, bundle.val, bundle.test):
        assert isinstance(split, Split)
        assert isinstance(split, ArraySplit)
        splits.append(split)
    return splits
