"""The recipe's data as the batches each stage wants, in the model's own layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from penjing.batches import Batch, between, count_samples, take_apart, unpack
from penjing.data import DataBundle, Loader, Split
from penjing.errors import DataError
from penjing.recipe.schema import DataConfig

Normalize = Mapping[str, Sequence[float]]
"""``mean`` and ``std`` of each channel of images in [0, 1]."""


class Changed:
    """A re-iterable whose batches pass through a function; otherwise it behaves as what it wraps."""

    def __init__(self, batches: Iterable[Any], change: Callable[[Any], Any]) -> None:
        self._batches, self._change = batches, change

    def __iter__(self) -> Iterator[Any]:
        return (self._change(batch) for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "_batches":  # while being copied, before __init__ has run
            raise AttributeError(name)
        return getattr(self._batches, name)


class Take:
    """The first samples of a re-iterable of batches; the last batch is cut where it must be."""

    def __init__(self, batches: Iterable[Any], num_samples: int) -> None:
        self._batches, self._num = batches, num_samples

    def __iter__(self) -> Iterator[Any]:
        left = self._num
        for batch in self._batches:
            size = count_samples(batch)
            yield batch if size <= left else between(batch, 0, left)
            left -= size
            if left <= 0:
                return


class Feed:
    """What the stages read. The test split is asked for by the measuring stage alone.

    Args:
        config: The recipe's ``data``.
        bundle: The opened source.
        layout: ``"nchw"`` or ``"nhwc"``.
        seed: Seeds shuffling and augmentation.
        source: ``mean`` and ``std`` as the model's source says, if it does.
        trains: Whether the network is trained on these images from scratch.
        names: Names of the inputs that the network requires; by them a batch of two tensors is two inputs or
            input and target, as in all stages (`penjing.batches.take_apart`).
    """

    def __init__(
        self,
        config: DataConfig,
        bundle: DataBundle,
        *,
        layout: str,
        seed: int,
        source: Normalize | None = None,
        trains: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        kind = _kind(config, bundle, source, trains=trains)
        mean, std = _statistics(kind, bundle, source)
        self.config, self.bundle = config, replace(bundle, mean=mean, std=std)
        self._as_opened, self._is_guess = bundle, kind == "unit" and config.normalize == "auto"
        self.layout, self.seed, self.names = layout, seed, tuple(names)

    def train(self, *, augment: bool = True) -> Iterable[Any]:
        """Training batches: shuffled, and augmented as the recipe says (a user's own loader as it is)."""
        function = None
        if augment and self.config.augment and isinstance(self.bundle.train, Split):
            from penjing.recover.augment import make_augment

            function = make_augment(self.config.augment, self.config.augment_options)
        return self._laid_out(
            self.bundle.loader(
                "train", self.config.batch_size, shuffle=True, seed=self.seed, augment=function
            )
        )

    def split(self, which: str, limit: int | None = None) -> Iterable[Any]:
        """All samples of a split in order, or ``limit`` of them, evenly spread."""
        found = getattr(self.bundle, which)
        if limit is None or found is None:
            return self._laid_out(self.bundle.loader(which, self.config.eval_batch_size))
        if not isinstance(found, Split):
            return self._laid_out(Take(found, limit))
        return self._chosen(found, _spread(len(found), limit))

    def calibration(self) -> Iterable[Any]:
        """Training samples without augmentation, for statistics. They come in mixed order: who reads only the
        first ones, as quantization does, would see but some classes of a folder.
        """
        found, limit = self.bundle.train, self.config.calibration
        if not isinstance(found, Split):
            return self.split("train", limit)
        order = np.random.default_rng(self.seed).permutation(_spread(len(found), limit))
        return self._chosen(found, order)

    def examples(self, num: int = 2) -> Any:
        """Inputs of the first validation samples, as the model takes them."""
        for batch in self.split("val", num):
            return between(take_apart(batch, self.names)[0], 0, num)
        raise DataError("the validation data has no batches", remedy="Check its path")

    def first(self, batches: Iterable[Any]) -> Batch | None:
        """The first of some batches of this data, taken apart; None where there is none."""
        item = next(iter(batches), None)
        return None if item is None else unpack(item, self.names)

    @property
    def normalize(self) -> Normalize | None:
        """``mean`` and ``std`` that images are normalised by; None where the user's own loaders do it."""
        bundle = self.bundle
        return {"mean": bundle.mean, "std": bundle.std} if bundle.mean else None

    @property
    def by_statistics(self) -> Feed | None:
        """The same images fed with the mean and deviation of the training images, where they go in as [0, 1]
        only because nobody says how.
        """
        if not self._is_guess:
            return None
        config = self.config.model_copy(update={"normalize": "mean_std"})
        return Feed(config, self._as_opened, layout=self.layout, seed=self.seed, names=self.names)

    def has(self, which: str) -> bool:
        """Whether there is such a split."""
        return getattr(self.bundle, which) is not None

    def _chosen(self, split: Split, indices: NDArray[np.int64]) -> Iterable[Any]:
        """These samples, in this order."""
        mean, std = self.bundle.mean, self.bundle.std
        return self._laid_out(Loader(split.subset(indices), self.config.eval_batch_size, mean=mean, std=std))

    def _laid_out(self, batches: Iterable[Any]) -> Iterable[Any]:
        return Changed(batches, self._channels_last) if self.layout == "nhwc" else batches

    def _channels_last(self, batch: Any) -> Any:
        inputs, target, logits = take_apart(batch, self.names)
        turned = pytree.tree_map(_turned, inputs)
        return (turned, target) if logits is None else (turned, target, logits)


def _spread(size: int, limit: int) -> NDArray[np.int64]:
    """Places of ``limit`` samples of ``size``, or of all where there are fewer, evenly spread."""
    return np.linspace(0, size - 1, min(limit, size)).round().astype(np.int64)


def _kind(config: DataConfig, bundle: DataBundle, source: Normalize | None, *, trains: bool) -> str:
    """How images are fed; see `DataConfig.normalize`."""
    if config.normalize != "auto":
        return config.normalize
    users = config.spec.rpartition(":")[0].endswith(".py")  # a bundle that the user's own function made
    if trains or users or not bundle.mean or {"mean", "std"} & config.options.keys():
        return "mean_std"
    return "model" if source is not None and len(source["mean"]) == len(bundle.mean) else "unit"


def _statistics(
    kind: str, bundle: DataBundle, source: Normalize | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What is subtracted from images in [0, 1], and what they are divided by."""
    channels = len(bundle.mean)
    known = 0 if source is None else len(source["mean"])
    if kind == "mean_std" or not channels:
        return bundle.mean, bundle.std
    if kind == "unit":
        return (0.0,) * channels, (1.0,) * channels
    if source is None or known != channels:
        raise DataError(
            f"images of {channels} channels; the model's source says how to normalise {known or 'none'}",
            layer="normalize",
            remedy="Give the data's options mean=[…] and std=[…], or normalize: unit",
        )
    return tuple(source["mean"]), tuple(source["std"])


def layout_of(example_inputs: Any, bundle: DataBundle) -> str:
    """``"nhwc"`` where a model's own example inputs have the data's channels last, else ``"nchw"``.

    Raises:
        DataError: for images, where the model takes raw pixels: floats in [0, 1] are other numbers to it.
    """
    inputs, shape = example_inputs, tuple(bundle.image_shape)
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    inputs = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else inputs
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4 or len(shape) != 3:
        return "nchw"
    if isinstance(bundle.train, Split) and not inputs.is_floating_point():
        kind = str(inputs.dtype).removeprefix("torch.")
        raise DataError(
            f"images are fed as floats, and the network takes them as {kind}",
            layer=bundle.source,
            remedy="Give file.py:factory as the data, with batches as the network takes them",
        )
    own = tuple(inputs.shape[1:])
    last = own == (*shape[1:], shape[0]) or shape[0] == own[-1] != own[0]  # free sizes are not the data's
    return "nhwc" if last and own != shape else "nchw"


def _turned(value: Any) -> Any:
    """Images with their channels last."""
    images = isinstance(value, torch.Tensor) and value.ndim == 4
    return value.permute(0, 2, 3, 1).contiguous() if images else value
