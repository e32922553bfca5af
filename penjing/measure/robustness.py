"""Accuracy on corrupted images: what a compressed network may lose without its clean accuracy showing it.

The corruptions are those of Hendrycks & Dietterich 2019 (arXiv:1903.12261) that need no extra data, at three
severities.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from penjing.data.split import Images, Loader, Split
from penjing.errors import MeasureError
from penjing.measure.accuracy import Accuracy, accuracy

Corrupt = Callable[[Images, int, np.random.Generator], Images]


def _noise(images: Images, severity: int, rng: np.random.Generator) -> Images:
    std = (0.06, 0.12, 0.2)[severity - 1] * 255
    noise = rng.standard_normal(images.shape, dtype=np.float32) * np.float32(std)
    noisy: Images = np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)
    return noisy


def _blur(images: Images, severity: int, rng: np.random.Generator) -> Images:
    # Relative to the image: a width that ruins 32 pixels is nothing at 224.
    radius = (0.02, 0.035, 0.05)[severity - 1] * images.shape[1]
    return _each(images, lambda picture: picture.filter(ImageFilter.GaussianBlur(radius)))


def _contrast(images: Images, severity: int, rng: np.random.Generator) -> Images:
    keep = np.float32((0.6, 0.4, 0.25)[severity - 1])
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    flat: Images = np.clip(np.rint(mean + (images - mean) * keep), 0, 255).astype(np.uint8)
    return flat


def _jpeg(images: Images, severity: int, rng: np.random.Generator) -> Images:
    quality = (50, 25, 10)[severity - 1]

    def squeeze(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _each(images, squeeze)


def _each(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    squeeze = images[..., 0] if images.shape[-1] == 1 else images
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in squeeze])
    return changed.reshape(images.shape)


CORRUPTIONS: Mapping[str, Corrupt] = {"noise": _noise, "blur": _blur, "contrast": _contrast, "jpeg": _jpeg}


class CorruptedSplit(Split):
    """A split seen through a corruption; an image is the same whatever it is fetched together with."""

    def __init__(self, base: Split, corruption: str, severity: int, seed: int = 0) -> None:
        if corruption not in CORRUPTIONS or severity not in (1, 2, 3):
            raise MeasureError(
                f"there is no corruption {corruption!r} of severity {severity}",
                remedy=f"Use one of {', '.join(CORRUPTIONS)} at 1, 2 or 3",
            )
        super().__init__(base.labels, base.classes, base.image_shape, f"{base.name} with {corruption}")
        self._base, self._corrupt, self._severity, self._seed = base, CORRUPTIONS[corruption], severity, seed

    def fetch(self, indices: NDArray[np.int64]) -> Images:
        """Corrupted images, each drawn from its own index."""
        images = self._base.fetch(indices)
        return np.concatenate(
            [
                self._corrupt(
                    images[i : i + 1], self._severity, np.random.default_rng((self._seed, int(index)))
                )
                for i, index in enumerate(indices)
            ]
        )


@dataclass(frozen=True)
class Robustness:
    """Accuracy clean and under each corruption.

    Attributes:
        clean: On the images as they are.
        corrupted: By corruption.
        severity: 1 (mild) to 3 (strong).
    """

    clean: Accuracy
    corrupted: Mapping[str, Accuracy]
    severity: int

    @property
    def mean(self) -> float:
        """Mean accuracy over the corruptions."""
        return sum(each.value for each in self.corrupted.values()) / len(self.corrupted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "clean": self.clean.to_dict(),
            "corrupted": {name: each.to_dict() for name, each in self.corrupted.items()},
            "mean": self.mean,
            "severity": self.severity,
        }


def robustness(
    predict: Any,
    split: Split,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: str = "nchw",
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severity: int = 2,
    batch_size: int = 256,
    seed: int = 0,
) -> Robustness:
    """Measure accuracy on the clean and on the corrupted images of a split.

    Args:
        predict: As for `accuracy`.
        split: Labelled uint8 images.
        mean: Normalisation of the network's input; likewise ``std``.
        layout: Of the network's input, ``"nchw"`` or ``"nhwc"``.
        corruptions: Names from `CORRUPTIONS`.
        severity: 1, 2 or 3.
        batch_size: Images in a batch.
        seed: Draws the noise.

    Raises:
        MeasureError: for an unknown corruption or severity.
    """
    if not corruptions:
        raise MeasureError("no corruption is named", remedy=f"Name some of {', '.join(CORRUPTIONS)}")
    views = {name: CorruptedSplit(split, name, severity, seed) for name in corruptions}

    def measure(view: Split) -> Accuracy:
        batches = Loader(view, batch_size, mean=mean, std=std)
        last = ((x_NCHW.permute(0, 2, 3, 1).contiguous(), y_N) for x_NCHW, y_N in batches)
        return accuracy(predict, last if layout == "nhwc" else batches)

    return Robustness(measure(split), {name: measure(view) for name, view in views.items()}, severity)
