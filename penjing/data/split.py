"""Splits, the loader that batches them, and the bundle every data source opens into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penjing.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Augment = Callable[[Tensor, torch.Generator], Tensor]
UNLABELLED = -1
"""In the place of each label of a split without classes."""
_MOST_NUMBERED = 1 << 20
"""Larger labels are ids or hashes: a name for each number below would fill the memory."""


class Split:
    """A map-style set of images: ``len(split)``, ``split[i]`` → (uint8 ``HWC`` array, int label).

    A subclass gives `fetch`; everything else follows from it. Images of one split all have one shape.

    Attributes:
        labels: int64 ``(N,)``; all `UNLABELLED` where there are no classes.
        classes: Class names; a label is an index into them. None: the images have no labels.
        image_shape: ``(H, W, C)`` of every image.
    """

    def __init__(
        self, labels: Labels, classes: Sequence[str], image_shape: tuple[int, int, int], name: str = "split"
    ) -> None:
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        self.classes = tuple(classes)
        self.image_shape = image_shape
        self.name = name
        if not len(self.labels):
            raise DataError("there is not one sample", layer=name, remedy="Give a set with images")
        if not self.is_labelled and bool((self.labels == UNLABELLED).all()):
            return
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            wrong = int(((self.labels < 0) | (self.labels >= len(self.classes))).sum())
            raise DataError(
                f"{wrong} labels are outside 0…{len(self.classes) - 1} (they span {low}…{high})",
                layer=name,
                remedy="Give integer labels that index the class names, and remove unlabelled samples",
            )

    @property
    def is_labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.classes)

    def fetch(self, indices: NDArray[np.int64]) -> Images:
        """The images at ``indices`` as one uint8 array ``(len(indices), H, W, C)``."""
        raise NotImplementedError

    @property
    def in_memory(self) -> bool:
        """Whether images that were fetched once are kept."""
        return True

    def check(self, indices: NDArray[np.int64] | None = None) -> None:
        """Fetch every image once (or those at ``indices``), where that can fail.

        Raises:
            DataError: naming the first one that cannot be read.
        """

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Images, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a split of {len(self)} samples")
        at = index % len(self)
        return self.fetch(np.array([at]))[0], int(self.labels[at])

    def __iter__(self) -> Iterator[tuple[Images, int]]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: NDArray[np.int64] | Sequence[int], name: str | None = None) -> Split:
        """A view of the samples at ``indices``, in that order, with the same classes."""
        return _Subset(self, np.asarray(indices, dtype=np.int64), name or self.name)

    def load(self) -> ArraySplit:
        """All images decoded into memory."""
        return ArraySplit(self.fetch(np.arange(len(self))), self.labels, self.classes, self.name)


class ArraySplit(Split):
    """A split held in memory as one uint8 array ``x_NHWC``."""

    def __init__(
        self, images: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], name: str = "split"
    ) -> None:
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise DataError(
                f"images are {images.dtype} of shape {images.shape}",
                layer=name,
                remedy="Give uint8 images of shape (N, H, W) or (N, H, W, C)",
            )
        if len(images) != len(labels):
            raise DataError(
                f"there are {len(images)} images and {len(labels)} labels",
                layer=name,
                remedy="Give one label for each image",
            )
        self.images: Images = np.ascontiguousarray(images)
        height, width, channels = images.shape[1:]
        super().__init__(np.asarray(labels), classes, (height, width, channels), name)

    def fetch(self, indices: NDArray[np.int64]) -> Images:
        """Rows of the array."""
        return self.images[indices]


class _Subset(Split):
    def __init__(self, base: Split, indices: NDArray[np.int64], name: str) -> None:
        self.base, self.indices = base, indices
        super().__init__(base.labels[indices], base.classes, base.image_shape, name)

    @property
    def in_memory(self) -> bool:
        return self.base.in_memory

    def fetch(self, indices: NDArray[np.int64]) -> Images:
        return self.base.fetch(self.indices[indices])

    def check(self, indices: NDArray[np.int64] | None = None) -> None:
        self.base.check(self.indices if indices is None else self.indices[indices])


class Loader:
    """A re-iterable of normalised batches ``(x_NCHW float32, y_N int64)``, deterministic in (seed, epoch); of
    images without labels, of ``x_NCHW`` alone.

    Every pass with the same seed and epoch gives the same batches, augmentation included, whatever was
    iterated before; `set_epoch` chooses the epoch (a pass does not advance it).

    Args:
        split: The samples.
        batch_size: Samples in a batch; the last batch may be smaller.
        shuffle: Draw a new order for each epoch.
        seed: Seeds the order and the augmentation.
        augment: ``augment(x_NCHW in [0, 1], generator)`` → ``x_NCHW``, applied before normalising.
        mean: Of each channel, in [0, 1]; subtracted.
        std: Of each channel, in [0, 1]; divided by.
        drop_last: Leave out a last batch that is not full.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}", remedy="Give a batch size of at least 1")
        if drop_last and len(split) < batch_size:
            raise DataError(
                f"drop_last leaves nothing of {len(split)} samples at batch size {batch_size}",
                layer=split.name,
                remedy="Give a smaller batch size or keep the last batch",
            )
        channels = split.image_shape[2]
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.augment, self.drop_last, self.epoch = augment, drop_last, 0
        self._mean_C11 = _as_C11(per_channel(0.0 if mean is None else mean, channels, "mean"))
        self._std_C11 = _as_C11(per_channel(1.0 if std is None else std, channels, "std"))
        if bool((self._std_C11 <= 0).any()):
            raise DataError(f"std is {std}", remedy="Give a positive standard deviation for each channel")

    @property
    def num_samples(self) -> int:
        """Samples in one pass."""
        return len(self) * self.batch_size if self.drop_last else len(self.split)

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's order and augmentation the next pass gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.split), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[Any]:
        order, generator = self._order(), self._generator()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            indices = order[start : start + self.batch_size]
            images = torch.from_numpy(np.ascontiguousarray(self.split.fetch(indices).transpose(0, 3, 1, 2)))
            x_NCHW = images.to(torch.float32).div_(255.0)
            if self.augment is not None:
                x_NCHW = self.augment(x_NCHW, generator)
            x_NCHW = (x_NCHW - self._mean_C11) / self._std_C11
            labelled = self.split.is_labelled
            yield (x_NCHW, torch.from_numpy(self.split.labels[indices])) if labelled else x_NCHW

    def _order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.split))
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.split))

    def _generator(self) -> torch.Generator:
        state = np.random.SeedSequence((self.seed, self.epoch, 1)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def per_channel(values: float | Sequence[float], channels: int, what: str) -> tuple[float, ...]:
    """One number for each channel, of as many or of one for all.

    Raises:
        DataError: for another count, or what is no finite number.
    """
    remedy = f"Give one {what} for each channel"
    try:
        given = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is {values!r}", remedy=remedy) from error
    if given.shape not in ((1,), (channels,)):
        raise DataError(f"{what} has {given.size} values for {channels} channels", remedy=remedy)
    if not np.isfinite(given).all():
        raise DataError(f"{what} is {values!r}", remedy=remedy)
    return tuple(np.broadcast_to(given, channels).tolist())


def _as_C11(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


@dataclass(frozen=True)
class DataBundle:
    """What a data source opens into: ``train`` fits weights, ``val`` chooses, ``test`` is only reported.

    Attributes:
        train: A `Split`, or a re-iterable of batches where the user gave loaders.
        val: Likewise; split off ``train`` when the source has none.
        test: Likewise, or None.
        classes: Class names (empty where the user's loaders do not say).
        mean: Of each channel over the training images, in [0, 1].
        std: Likewise.
        image_shape: ``(C, H, W)``.
        source: What was opened.
    """

    train: Split | Iterable[Any]
    val: Split | Iterable[Any]
    test: Split | Iterable[Any] | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, ...]
    source: str = ""

    @property
    def num_classes(self) -> int:
        """How many classes the labels index."""
        return len(self.classes)

    def loader(
        self,
        which: str,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> Iterable[Any]:
        """Normalised batches of split ``"train"``, ``"val"`` or ``"test"`` (a user's own loader as it is).

        Raises:
            DataError: if there is no such split.
        """
        if which not in ("train", "val", "test") or getattr(self, which) is None:
            there = [name for name in ("train", "val", "test") if getattr(self, name) is not None]
            raise DataError(
                f"there is no split {which!r}",
                layer=self.source or None,
                remedy=f"Use one of {', '.join(there)}",
            )
        split = getattr(self, which)
        if not isinstance(split, Split):
            return split  # type: ignore[no-any-return]
        return Loader(
            split,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            augment=augment,
            mean=self.mean,
            std=self.std,
            drop_last=drop_last,
        )

    def to_dict(self) -> dict[str, Any]:
        """Facts about the data as plain JSON: sizes, classes, statistics."""
        sizes = {
            name: len(split) if isinstance(split, Split) else None
            for name, split in (("train", self.train), ("val", self.val), ("test", self.test))
            if split is not None
        }
        return {
            "source": self.source,
            "num_samples": sizes,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "image_shape": list(self.image_shape),
        }


def channel_statistics(split: Split, limit: int = 20_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], over at most ``limit`` evenly spread images."""
    step = max(1, -(-len(split) // limit))
    indices = np.arange(0, len(split), step)
    total = np.zeros(split.image_shape[2])
    squares = np.zeros_like(total)
    for start in range(0, len(indices), 512):
        images = split.fetch(indices[start : start + 512]).astype(np.float64) / 255.0
        total += images.sum(axis=(0, 1, 2))
        squares += np.square(images).sum(axis=(0, 1, 2))
    count = len(indices) * split.image_shape[0] * split.image_shape[1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    std = np.where(std < 1e-3, 1.0, std)  # a constant channel is centred, not blown up
    return tuple(round(float(v), 6) for v in mean), tuple(round(float(v), 6) for v in std)


def numbered_classes(labels: Labels, source: str) -> tuple[str, ...]:
    """Names of classes that nobody named: their numbers.

    Raises:
        DataError: for labels that cannot be the numbers of classes.
    """
    top = int(labels.max(initial=-1))
    if top >= _MOST_NUMBERED:
        raise DataError(
            f"a label is {top}, which would make as many classes",
            layer=source,
            remedy="Number the classes 0, 1, 2…, or give their names as classes",
        )
    return tuple(str(label) for label in range(top + 1))
