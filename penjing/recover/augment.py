"""Augmentation of whole batches of images, as tensors: fast enough to keep two cores busy with training.

An augmentation is a callable ``(x_NCHW in [0, 1], generator) -> x_NCHW``; each sample of the batch draws
its own parameters from the generator, so the result is a function of the batch and the generator's seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional as F

from penjing.config import refuse_truth
from penjing.errors import RecipeError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def uniform(size: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [low, high)."""
    return torch.rand(tuple(size), generator=generator) * (high - low) + low


@dataclass(frozen=True)
class Compose:
    """One augmentation after another."""

    parts: tuple[Augmentation, ...]

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch after every part."""
        for part in self.parts:
            x_NCHW = part(x_NCHW, generator)
        return x_NCHW


@dataclass(frozen=True)
class RandomAffine:
    """Rotation, shear, scale, shift in one bilinear resampling.

    Attributes:
        degrees: Largest rotation to either side.
        shear: Largest shear, in degrees, along x.
        scale: Zoom is drawn from ``[1 - scale, 1 + scale]``.
        shift: Largest shift, as a fraction of the side.
        padding: What lies outside: ``"border"``, ``"zeros"`` or ``"reflection"``.
    """

    degrees: float = 10.0
    shear: float = 8.0
    scale: float = 0.1
    shift: float = 0.08
    padding: Literal["border", "zeros", "reflection"] = "border"

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, resampled."""
        n, _, height, width = x_NCHW.shape
        angle_N = torch.deg2rad(uniform([n], -self.degrees, self.degrees, generator))
        shear_N = torch.tan(torch.deg2rad(uniform([n], -self.shear, self.shear, generator)))
        zoom_N = 1 / uniform([n], 1 - self.scale, 1 + self.scale, generator)
        shift_N2 = 2 * uniform([n, 2], -self.shift, self.shift, generator)
        cos_N, sin_N = angle_N.cos() * zoom_N, angle_N.sin() * zoom_N
        # grid coordinates are relative to the sides: a rotation must know how they compare
        aspect = height / width
        theta_N23 = torch.zeros(n, 2, 3)
        theta_N23[:, 0, 0], theta_N23[:, 0, 1] = cos_N, (shear_N * cos_N - sin_N) * aspect
        theta_N23[:, 1, 0], theta_N23[:, 1, 1] = sin_N / aspect, cos_N + shear_N * sin_N
        theta_N23[:, :, 2] = shift_N2
        theta_N23 = theta_N23.to(x_NCHW)
        grid = F.affine_grid(theta_N23, list(x_NCHW.shape), align_corners=False)
        return F.grid_sample(x_NCHW, grid, "bilinear", self.padding, align_corners=False)


@dataclass(frozen=True)
class RandomCrop:
    """Pad by reflection or zeros and cut the old size out at a random place.

    Attributes:
        padding: Pixels on each side.
        mode: ``"constant"`` (zeros) or ``"reflect"``.
    """

    padding: int = 4
    mode: Literal["constant", "reflect"] = "constant"

    def __post_init__(self) -> None:
        if self.padding < 0 or self.mode not in ("constant", "reflect"):
            raise RecipeError(
                f"crop has padding {self.padding} and mode {self.mode!r}",
                layer="data.augment_options",
                remedy="Give a padding of 0 or more and mode constant or reflect",
            )

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, shifted by whole pixels."""
        n, channels, height, width = x_NCHW.shape
        p = self.padding
        if self.mode == "reflect" and p >= min(height, width):
            raise RecipeError(
                f"crop pads by reflection with {p} pixels, and images are {height}×{width}",
                layer="data.augment_options",
                remedy=f"Give a padding below {min(height, width)}, or mode constant",
            )
        padded = F.pad(x_NCHW, (p, p, p, p), self.mode)
        top_N = torch.randint(2 * p + 1, (n,), generator=generator)
        left_N = torch.randint(2 * p + 1, (n,), generator=generator)
        rows_NH = top_N[:, None] + torch.arange(height)
        columns_NW = left_N[:, None] + torch.arange(width)
        # two gathers along one dim each are several times faster than one over both
        rows = rows_NH[:, None, :, None].expand(n, channels, height, width + 2 * p).to(x_NCHW.device)
        columns = columns_NW[:, None, None, :].expand(n, channels, height, width).to(x_NCHW.device)
        return padded.gather(2, rows).gather(3, columns)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image, of random area and shape, brought to the whole size (Szegedy et al. 2015).

    Attributes:
        smallest: Least share of the area; the share is drawn from ``[smallest, 1]``.
        aspect: The part is up to so many times wider or higher than the image's own shape.
    """

    smallest: float = 0.35
    aspect: float = 4 / 3

    def __post_init__(self) -> None:
        if not (0 < self.smallest <= 1 and 1 <= self.aspect < math.inf):
            raise RecipeError(
                f"resized_crop has smallest {self.smallest} and aspect {self.aspect}",
                layer="data.augment_options",
                remedy="Give a smallest share above 0 and at most 1, and an aspect of 1 or more",
            )

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, enlarged."""
        n, bound = len(x_NCHW), math.log(self.aspect)
        area_N = uniform([n], self.smallest, 1, generator)
        shape_N = uniform([n], -bound, bound, generator).exp()
        size_N2 = torch.stack((area_N * shape_N, area_N / shape_N), 1).sqrt().clamp(max=1)
        theta_N23 = torch.zeros(n, 2, 3)
        theta_N23[:, 0, 0], theta_N23[:, 1, 1] = size_N2.unbind(1)
        theta_N23[:, :, 2] = (1 - size_N2) * uniform([n, 2], -1, 1, generator)
        grid = F.affine_grid(theta_N23.to(x_NCHW), list(x_NCHW.shape), align_corners=False)
        return F.grid_sample(x_NCHW, grid, "bilinear", "border", align_corners=False)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right.

    Attributes:
        chance: Probability of a flip.
    """

    chance: float = 0.5

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, some of it mirrored."""
        flip_N = torch.rand(len(x_NCHW), generator=generator) < self.chance
        return torch.where(flip_N[:, None, None, None].to(x_NCHW.device), x_NCHW.flip(3), x_NCHW)


@dataclass(frozen=True)
class RandomErasing:
    """Fill a rectangle with its image's mean (Zhong et al. 2020).

    Attributes:
        chance: Probability for each image.
        area: Range of the rectangle's share of the image.
        ratio: Largest ratio of its sides, either way.
    """

    chance: float = 0.25
    area: tuple[float, float] = (0.02, 0.2)
    ratio: float = 3.0

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, some of it with a filled rectangle."""
        n, _, height, width = x_NCHW.shape
        chosen_N = torch.rand(n, generator=generator) < self.chance
        area_N = uniform([n], *self.area, generator)
        stretch_N = torch.exp(0.5 * uniform([n], -math.log(self.ratio), math.log(self.ratio), generator))
        half_h_N = 0.5 * height * (area_N.sqrt() * stretch_N).clamp_max(1)
        half_w_N = 0.5 * width * (area_N.sqrt() / stretch_N).clamp_max(1)
        y_N = uniform([n], 0, 1, generator) * (height - 2 * half_h_N) + half_h_N
        x_N = uniform([n], 0, 1, generator) * (width - 2 * half_w_N) + half_w_N
        rows_NH = (torch.arange(height) + 0.5 - y_N[:, None]).abs() <= half_h_N[:, None]
        columns_NW = (torch.arange(width) + 0.5 - x_N[:, None]).abs() <= half_w_N[:, None]
        hole = (rows_NH[:, None, :, None] & columns_NW[:, None, None, :]) & chosen_N[:, None, None, None]
        return torch.where(hole.to(x_NCHW.device), x_NCHW.mean((2, 3), keepdim=True), x_NCHW)


@dataclass(frozen=True)
class Photometric:
    """Brightness, contrast, gamma-free noise: the light changes, the shapes do not.

    Attributes:
        brightness: Largest offset.
        contrast: Contrast is drawn from ``[1 - contrast, 1 + contrast]`` about the image's mean.
        noise: Largest standard deviation of added noise.
    """

    brightness: float = 0.15
    contrast: float = 0.3
    noise: float = 0.05

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, clamped to [0, 1]."""
        shape = [len(x_NCHW), 1, 1, 1]
        offset = uniform(shape, -self.brightness, self.brightness, generator).to(x_NCHW)
        factor = uniform(shape, 1 - self.contrast, 1 + self.contrast, generator).to(x_NCHW)
        mean = x_NCHW.mean((1, 2, 3), keepdim=True)
        x_NCHW = (x_NCHW - mean) * factor + mean + offset
        if self.noise:
            amount = uniform(shape, 0, self.noise, generator).to(x_NCHW)
            x_NCHW = x_NCHW + amount * torch.randn(x_NCHW.shape, generator=generator).to(x_NCHW)
        return x_NCHW.clamp(0, 1)


@dataclass(frozen=True)
class RandAugment:
    """A few of the operations of RandAugment (Cubuk et al. 2020), drawn once a batch.

    Each batch goes through ``number`` different operations of: rotation, shear, zoom and shift, brightness,
    contrast, noise, erasing, flip (only where mirrored images mean the same), every image with its own
    parameters.

    Attributes:
        number: Operations for each batch.
        magnitude: Strength, 0 to 1.
        mirror: Whether mirroring is allowed.

    Raises:
        RecipeError: for a magnitude beyond 1 (other libraries count it to 10 or 30), or no whole number.
    """

    number: int = 2
    magnitude: float = 0.5
    mirror: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.number, int) and self.number >= 1 and 0 <= self.magnitude <= 1):
            raise RecipeError(
                f"RandAugment cannot draw {self.number!r} operations of magnitude {self.magnitude!r}",
                layer="data.augment_options",
                remedy="Give a number of 1 or more, and a magnitude from 0 to 1",
            )

    def operations(self) -> tuple[Augmentation, ...]:
        """What is drawn from."""
        m = self.magnitude
        found: tuple[Augmentation, ...] = (
            RandomAffine(30 * m, 0, 0, 0),
            RandomAffine(0, 25 * m, 0, 0),
            RandomAffine(0, 0, 0.4 * m, 0.3 * m),
            Photometric(0.4 * m, 0, 0),
            Photometric(0, 0.9 * m, 0),
            Photometric(0, 0, 0.2 * m),
            RandomErasing(m, (0.02, 0.02 + 0.3 * m)),
        )
        return (*found, RandomFlip()) if self.mirror else found

    def __call__(self, x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The batch after the operations drawn for it."""
        operations = self.operations()
        for index in torch.randperm(len(operations), generator=generator)[: self.number].tolist():
            x_NCHW = operations[index](x_NCHW, generator)
        return x_NCHW


_SINGLE: dict[str, type] = {
    "affine": RandomAffine,
    "crop": RandomCrop,
    "resized_crop": RandomResizedCrop,
    "flip": RandomFlip,
    "erasing": RandomErasing,
    "photometric": Photometric,
    "randaugment": RandAugment,
}
_PRESETS: dict[str, Augmentation] = {
    "glyphs": Compose((RandomAffine(), Photometric(), RandomErasing())),
    "photos": Compose((RandomCrop(), RandomFlip())),
    "photos+": Compose((RandomCrop(), RandomFlip(), RandAugment())),
    "large_photos": Compose((RandomResizedCrop(), RandomFlip())),
}


def named_augmentations() -> dict[str, Any]:
    """Every augmentation that has a name: operations, which take options, and presets of them."""
    return {**_SINGLE, **_PRESETS}


def make_augment(name: str, options: Mapping[str, Any] | None = None) -> Augmentation:
    """An augmentation by name.

    Args:
        name: One operation (``"affine"``, ``"crop"``, ``"resized_crop"``, ``"flip"``, ``"erasing"``,
            ``"photometric"``, ``"randaugment"``) or a preset without options (``"glyphs"``, ``"photos"``:
            crop and flip, ``"photos+"``: with RandAugment, ``"large_photos"``: resized crop and flip, for
            photographs of 100 pixels and more).
        options: Of the one operation.

    Raises:
        RecipeError: for another name or option.
    """
    if name in _PRESETS and not options:
        return _PRESETS[name]
    if name not in _SINGLE:
        problem = "takes no options" if name in _PRESETS else "is not known"
        raise RecipeError(
            f"the augmentation {name!r} {problem}",
            layer="data.augment",
            remedy=f"Use one of {', '.join((*_SINGLE, *_PRESETS))}",
        )
    wanted = get_type_hints(_SINGLE[name])
    options = {key: _checked(key, wanted.get(key, Any), value) for key, value in (options or {}).items()}
    try:
        made: Augmentation = _SINGLE[name](**options)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(_SINGLE[name]))
        raise RecipeError(
            f"{name!r} does not take {options}", layer="data.augment_options", remedy=f"It takes {known}"
        ) from error
    return made


def _checked(key: str, wanted: Any, value: Any) -> Any:
    """The value of an option as its annotation wants it."""
    try:
        refuse_truth(wanted, value)
        return TypeAdapter(wanted).validate_python(value)
    except ValueError as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RecipeError(
            f"{key} is {value!r} ({why})", layer="data.augment_options", remedy="Correct this option"
        ) from error
