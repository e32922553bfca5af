"""How photographs of any size come to the one size that a network takes."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from PIL import Image

from penjing.errors import DataError

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def is_whole(value: object) -> bool:
    """Whether an option is a whole number."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Sizing:
    """Every image as a square of one size.

    Args:
        size: Height and width in pixels.
        crop_fraction: The middle is cut out: the shorter side is brought to ``size / crop_fraction`` pixels
            first, and the sides keep their ratio. Networks of torchvision and timm are evaluated so, most
            with 0.875 (timm's ``crop_pct``). None stretches the whole image to the square.
        interpolation: ``"bilinear"`` or ``"bicubic"``, smoothed where images shrink.

    Raises:
        DataError: options out of range.
    """

    size: int
    crop_fraction: float | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        share: object = self.crop_fraction  # options come from command lines and YAML
        if not is_whole(self.size) or self.size < 1:
            raise DataError(f"image_size is {self.size!r}", remedy="Give a whole number of pixels, 1 or more")
        if share is not None and not (isinstance(share, numbers.Real) and 0 < float(share) <= 1):
            raise DataError(f"crop_fraction is {share!r}", remedy="Give a number above 0 and at most 1")
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"interpolation is {self.interpolation!r}", remedy=f"Give {' or '.join(INTERPOLATIONS)}"
            )

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The image at that size."""
        how = INTERPOLATIONS[self.interpolation]
        if self.crop_fraction is None:
            return picture.resize((self.size, self.size), how)
        short = math.floor(self.size / self.crop_fraction + 1e-6)  # 224 / (224 / 232) is below 232
        shorter = min(picture.size)
        width, height = (short if side == shorter else short * side // shorter for side in picture.size)
        # rounded as torchvision does
        left, top = (round((side - self.size) / 2) for side in (width, height))
        return picture.resize((width, height), how).crop((left, top, left + self.size, top + self.size))
