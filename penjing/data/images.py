"""Splits of encoded images (PNG, JPEG, WebP…): folders and Parquet files, decoded when first asked for."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from penjing.data.sizing import Sizing
from penjing.data.split import UNLABELLED, Images, Labels, Split, numbered_classes
from penjing.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_MEMORY_LIMIT = 1 << 30  # decoded bytes up to which a split is kept in memory once decoded
_CHECKED = 64  # images decoded at a time to see that they can be
_GRAY = frozenset({"1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_ORIENTATION = 0x0112  # EXIF tag: how the stored picture is turned to stand upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class EncodedSplit(Split):
    """Images kept encoded. A subclass gives `_encoded`; all are brought to one mode and size.

    An image is decoded when it is first asked for, and kept where the whole split takes less than 1 GiB.
    It is turned upright as its EXIF data says; transparency and all but the first frame are dropped.

    Args:
        labels: int64 ``(N,)``.
        classes: Class names.
        name: Of the split.
        sizing: How every image comes to one size; without it, all must have one.
        channels: 1 (gray) or 3; by default what most of a few images have.
    """

    def __init__(
        self,
        labels: Labels,
        classes: Sequence[str],
        name: str,
        *,
        sizing: Sizing | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__(labels, classes, (1, 1, 1), name)
        self._sizing = sizing
        with _large_images_unwarned():
            self.image_shape = (*self._first_size(), channels or self._channels())
        height, width, channels = self.image_shape
        self._cache: Images | None = None
        if len(self) * height * width * channels <= _MEMORY_LIMIT:
            self._cache = np.empty((len(self), height, width, channels), dtype=np.uint8)
            self._cached = np.zeros(len(self), dtype=bool)

    def _encoded(self, index: int) -> tuple[bytes, str]:
        """The encoded image, and what to call it in an error."""
        raise NotImplementedError

    def _picture(self, index: int, *, header_only: bool = False) -> tuple[Image.Image, str]:
        encoded, where = self._encoded(index)
        try:
            picture = Image.open(io.BytesIO(encoded))
            if not header_only:
                picture.load()
        # PIL raises SyntaxError for broken PNG chunks and DecompressionBombError for absurd sizes.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # PIL's own words would name a buffer in memory
            why = "its format is not known" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"the image cannot be decoded ({why})", layer=where, remedy="Replace or remove this image"
            ) from error
        return picture if header_only else _upright(picture), where

    def _first_size(self) -> tuple[int, int]:
        if self._sizing:
            return self._sizing.size, self._sizing.size
        picture, _ = self._picture(0)
        return picture.height, picture.width

    def _channels(self, looked_at: int = 64) -> int:
        """Not by the first image alone: a gray one among photos must not take their color."""
        indices = np.unique(np.linspace(0, len(self) - 1, looked_at).astype(int))
        gray = [self._picture(int(index), header_only=True)[0].mode in _GRAY for index in indices]
        return 1 if 2 * sum(gray) > len(gray) else 3

    def fetch(self, indices: NDArray[np.int64]) -> Images:
        """Decoded images, by as many threads as torch has."""
        if self._cache is None:
            return np.stack(self._decoded(indices))
        new = np.unique(indices[~self._cached[indices]])
        if len(new):
            self._cache[new] = self._decoded(new)
            self._cached[new] = True
        return self._cache[indices]

    def _decoded(self, indices: NDArray[np.int64]) -> list[Images]:
        threads = min(torch.get_num_threads(), len(indices))
        with _large_images_unwarned():
            if threads == 1:
                return [self._decode(int(index)) for index in indices]
            pool = ThreadPoolExecutor(threads)
            try:
                return list(pool.map(self._decode, indices.tolist()))
            finally:
                pool.shutdown(cancel_futures=True)

    @property
    def in_memory(self) -> bool:
        """Whether the whole split takes less than 1 GiB, so that images once decoded are kept."""
        return self._cache is not None

    def check(self, indices: NDArray[np.int64] | None = None) -> None:
        """Decode every image once."""
        every = np.arange(len(self)) if indices is None else indices
        for start in range(0, len(every), _CHECKED):
            self.fetch(every[start : start + _CHECKED])

    def _decode(self, index: int) -> Images:
        height, width, channels = self.image_shape
        picture, where = self._picture(index)
        picture = _eight_bits(picture, where)
        picture.info.pop("transparency", None)  # dropped, and PIL would warn of it for a palette
        picture = picture.convert("L" if channels == 1 else "RGB")
        if self._sizing:
            picture = self._sizing(picture)
        elif picture.size != (width, height):
            raise DataError(
                f"the image is {picture.height}×{picture.width} pixels and the first {height}×{width}",
                layer=where,
                remedy="Give image_size to resize all images (crop_fraction=0.875 cuts their middle out)",
            )
        return np.asarray(picture).reshape(height, width, channels)


@contextmanager
def _large_images_unwarned() -> Iterator[None]:
    """Below the size that PIL refuses there is nothing to say. Around threads, which share the filters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata raises many things, and the pixels are sound
        return picture
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image, where: str) -> Image.Image:
    """PIL's own conversion would clip deeper gray to white instead of scaling it."""
    # of 32-bit images only those from 16-bit PGM files have a known range
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise DataError(
            f"its pixels are of PIL mode {picture.mode!r}, 32 bits of no known range",
            layer=where,
            remedy="Save 8-bit or 16-bit images",
        )
    return picture


class FolderSplit(EncodedSplit):
    """Image files; only their paths are held."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: Labels,
        classes: Sequence[str],
        name: str,
        *,
        sizing: Sizing | None = None,
        channels: int | None = None,
    ) -> None:
        self.files = tuple(files)
        super().__init__(labels, classes, name, sizing=sizing, channels=channels)

    def _encoded(self, index: int) -> tuple[bytes, str]:
        where = str(self.files[index])
        try:
            return self.files[index].read_bytes(), where
        except OSError as error:
            raise DataError(
                f"the image cannot be read ({error.strerror})",
                layer=where,
                remedy="Restore or remove this image",
            ) from error


def list_folder(
    folder: Path, classes: tuple[str, ...] | None = None
) -> tuple[list[Path], Labels, tuple[str, ...]]:
    """Image files of ``folder/CLASS/…`` in sorted order, with labels and class names; of a folder that holds
    nothing but images, these without labels.

    Args:
        folder: Where they are.
        classes: Those of training, none where it has no labels; None for training itself.

    Raises:
        DataError: no folder, neither images nor class folders, images outside them, a class that training has
            not, or a class of training without images.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder", layer=str(folder), remedy="Give an existing image folder")
    found = sorted(
        child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    loose = sorted(child for child in folder.iterdir() if _is_image(child, folder))
    if loose and not found and not classes:
        return loose, np.full(len(loose), UNLABELLED), ()
    if loose:
        raise DataError(
            f"{len(loose)} images, such as {loose[0].name}, have no class folder and so no label",
            layer=str(folder),
            remedy="Put each image in a folder named for its class",
        )
    if not found:
        raise DataError(
            "it has neither images nor class folders",
            layer=str(folder),
            remedy="Put images in CLASS/ folders, or, without labels, right into it",
        )
    names = classes if classes is not None else tuple(found)
    unknown = [name for name in found if name not in names]
    if unknown:
        raise DataError(
            f"class {unknown[0]!r} is not among the training classes"
            + ("" if names else " (the training images have no labels)"),
            layer=str(folder),
            remedy="Rename or remove that folder",
        )
    files: list[Path] = []
    labels: list[int] = []
    for name in found:
        mine = sorted(file for file in (folder / name).rglob("*") if _is_image(file, folder))
        if not mine and classes is None:
            raise DataError(
                f"there is not one sample of class {name!r} ({', '.join(sorted(SUFFIXES))})",
                layer=str(folder),
                remedy="Remove that folder or put images in it",
            )
        files += mine
        labels += [names.index(name)] * len(mine)
    return files, np.asarray(labels, dtype=np.int64), names


def _is_image(file: Path, folder: Path) -> bool:
    """By its suffix; what is hidden are macOS's ``._`` companions and Jupyter's copies, not images."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in SUFFIXES and not hidden


class ParquetSplit(EncodedSplit):
    """A Parquet table in the Hugging Face layout; encoded bytes are held.

    Attributes:
        declared: The different lists of class names that its files hold.
    """

    def __init__(
        self,
        column: Any,
        labels: Labels,
        classes: Sequence[str],
        name: str,
        sources: Sequence[tuple[Path, int]],
        *,
        sizing: Sizing | None = None,
        channels: int | None = None,
        declared: frozenset[tuple[str, ...]] = frozenset(),
    ) -> None:
        self._column, self._sources, self.declared = column, sources, declared
        super().__init__(labels, classes, name, sizing=sizing, channels=channels)

    def _encoded(self, index: int) -> tuple[bytes, str]:
        where = self._where(index)
        held = self._column[index].as_py()
        if held is None:
            raise DataError(
                "the image has no bytes", layer=where, remedy="Store the encoded image in the file"
            )
        return bytes(held), where

    def _where(self, row: int) -> str:
        for path, rows in self._sources:
            if row < rows:
                return f"{path} row {row}"
            row -= rows
        raise IndexError(row)

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        classes: tuple[str, ...] | None,
        name: str,
        *,
        sizing: Sizing | None = None,
        channels: int | None = None,
    ) -> ParquetSplit:
        """Read ``image`` and ``label`` columns; several files are laid end to end.

        Raises:
            DataError: not Parquet, a missing column, or missing labels.
        """
        import pyarrow as pa

        shards = [_read_shard(path) for path in paths]
        images = pa.chunked_array(
            [chunk for each in shards for chunk in each.images.chunks], pa.large_binary()
        )
        bare = [path for path, each in zip(paths, shards, strict=True) if not each.is_labelled]
        if 0 < len(bare) < len(shards):
            raise DataError(
                "it has no column 'label', and other files of the set have",
                layer=str(bare[0]),
                remedy="Give all labels, or none",
            )
        labels = np.concatenate([each.labels for each in shards])
        declared = [each.classes for each in shards if each.classes is not None]
        names = classes or (declared[0] if declared else numbered_classes(labels, str(paths[0])))
        return cls(
            images,
            labels,
            names,
            name,
            [(path, len(each.labels)) for path, each in zip(paths, shards, strict=True)],
            sizing=sizing,
            channels=channels,
            declared=frozenset(declared),
        )


class _Shard(NamedTuple):
    """One Parquet file: shards may differ in the types of their columns, so each is read by itself."""

    images: Any  # a chunked array of large_binary
    labels: Labels
    classes: tuple[str, ...] | None
    is_labelled: bool = True


def _read_shard(path: Path) -> _Shard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"it cannot be read as Parquet ({error})", layer=str(path), remedy="Give a sound Parquet file"
        ) from error
    columns = table.column_names
    label_key = next((key for key in ("label", "labels", "fine_label") if key in columns), None)
    image_key = next((key for key in ("image", "img") if key in columns), None)
    unlabelled = columns == [image_key]  # beside other columns a label may only have another name
    if image_key is None or (label_key is None and not unlabelled):
        raise DataError(
            f"its columns are {', '.join(columns)}",
            layer=str(path),
            remedy="Give columns 'image' (struct of bytes and path) and 'label' (int64; without labels, the "
            "image column alone), or other data by file.py:factory",
        )
    images = table.column(image_key)
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pa.compute.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(
            f"the image column is {images.type}", layer=str(path), remedy="Store encoded images as bytes"
        )
    images = images.cast(pa.large_binary())
    if label_key is None:
        return _Shard(images, np.full(len(images), UNLABELLED), None, is_labelled=False)
    labels = table.column(label_key)
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise DataError(
            f"labels are {labels.type}, {labels.null_count} of them missing",
            layer=str(path),
            remedy="Give an integer label for each image",
        )
    return _Shard(images, labels.to_numpy().astype(np.int64), class_names(table.schema.metadata, label_key))


def class_names(metadata: Mapping[bytes, bytes] | None, label: str = "label") -> tuple[str, ...] | None:
    """Class names in a schema's metadata: key ``classes``, or the Hugging Face feature of the label."""
    metadata = metadata or {}
    for key in (b"classes", b"huggingface"):
        if key in metadata:
            try:
                held = json.loads(metadata[key])
            except ValueError:
                held = metadata[key].decode("utf-8", "replace").split(",")
            if isinstance(held, dict):
                for step in ("info", "features", label, "names"):
                    held = held.get(step) if isinstance(held, dict) else None
            if isinstance(held, list):
                return tuple(str(name) for name in held)
    return None
