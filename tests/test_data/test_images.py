from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penjing.data import images as module
from penjing.data.images import FolderSplit, list_folder
from penjing.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(
                tmp_path / label / f"{i}.png"
            )
    return tmp_path


def open_split(folder: Path) -> FolderSplit:
    files, labels, classes = list_folder(folder)
    return FolderSplit(files, labels, classes, "train")


def test_images_are_the_same_kept_in_memory_or_decoded_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = open_split(folder)
    monkeypatch.setattr(module, "_MEMORY_LIMIT", 0)
    fresh = open_split(folder)
    indices = np.array([4, 1, 1, 5])
    for _ in range(2):
        assert np.array_equal(kept.fetch(indices), fresh.fetch(indices))
    assert kept.image_shape == (6, 5, 3)
    expected = np.asarray(Image.open(kept.files[4]))
    assert np.array_equal(kept[4][0], expected)


def test_a_file_is_decoded_once_and_what_was_given_out_is_a_copy(folder: Path) -> None:
    split = open_split(folder)
    before = split.fetch(np.array([0]))
    split.files[0].unlink()
    taken = split.fetch(np.array([0]))
    assert np.array_equal(taken, before)
    taken[:] = 0
    assert np.array_equal(split.fetch(np.array([0])), before)


def test_a_file_that_is_gone_is_an_error_that_names_it(folder: Path) -> None:
    split = open_split(folder)
    split.files[5].unlink()
    with pytest.raises(DataError, match=r"b/2\.png: the image cannot be read"):
        split.fetch(np.array([5]))
