from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_several_threads_decode_the_same_and_name_the_first_that_fails(folder: Path) -> None:
    together, indices = open_split(folder), np.array([5, 0, 3, 0, 1])
    assert np.array_equal(together.fetch(indices), np.stack([open_split(folder)[i][0] for i in indices]))
    broken = open_split(folder)
    for which in (1, 4):
        broken.files[which].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a/1\.png: the image cannot be decoded"):
        broken.fetch(np.arange(6))
    assert np.array_equal(broken.fetch(indices[:3]), together.fetch(indices[:3]))


def only(path: Path, picture: Image.Image, **options: Any) -> FolderSplit:
    picture.save(path, **options)
    return FolderSplit([path], np.zeros(1, np.int64), ("a",), "train")


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 257, 25_700], [32_896, 65_406, 65_535]], np.uint16)
    image, _ = only(tmp_path / f"deep.{suffix}", Image.fromarray(deep))[0]
    assert image[..., 0].tolist() == [[0, 1, 100], [128, 254, 255]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_gray_of_no_known_range_is_an_error(tmp_path: Path, kind: type) -> None:
    split = only(tmp_path / "deep.tiff", Image.fromarray(np.ones((2, 3), kind)))
    with pytest.raises(DataError, match=r"deep\.tiff.*no known range"):
        split.fetch(np.array([0]))


def test_images_are_turned_upright_as_their_exif_says(tmp_path: Path) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for orientation, upright in ((3, np.rot90(stored, 2)), (6, np.rot90(stored, -1))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        split = only(tmp_path / "a.png", Image.fromarray(stored), exif=exif)
        assert np.array_equal(split[0][0][..., 0], upright)


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 2))
    picture.putpalette([7, 8, 9, 1, 2, 3])
    split = only(tmp_path / "a.png", picture, transparency=b"\x10\x80")
    assert np.array_equal(split[0][0], np.full((2, 3, 3), (7, 8, 9)))


def test_a_gray_image_first_does_not_take_color_from_the_others(folder: Path) -> None:
    Image.new("L", (5, 6)).save(folder / "a" / "0.png")
    split = open_split(folder)
    assert split.image_shape == (6, 5, 3)
    assert np.array_equal(split[4][0], np.asarray(Image.open(split.files[4])))


def test_a_large_image_is_read_without_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns from half of the size on that it refuses; warnings are errors here."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert open_split(folder).fetch(np.arange(6)).shape == (6, 6, 5, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="exceeds limit"):
        open_split(folder).fetch(np.arange(6))
