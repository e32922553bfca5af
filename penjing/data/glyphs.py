"""The embedded data set: 100 classes of letters, digits and signs, drawn from the typefaces matplotlib ships.

Classes are characters of the Latin, Greek and Cyrillic scripts, digits and signs, one of each look-alike (no
case pairs of one shape, no letter shared by two scripts). The three splits use **disjoint type families**:

* *train*: DejaVu Sans and STIX General (regular, bold, italic/oblique and bold italic of each; 8 faces);
* *val*: DejaVu Sans Mono (4 faces), never in training, so it can choose between models honestly;
* *test*: DejaVu Serif (4 faces), in neither.

Every image is 32×32 grey, uint8, with random rotation, shear, scale, shift, blur, contrast, noise and
occlusion of the same distribution in all splits. All of it follows from the seed; nothing is downloaded or
stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from penjing.data.split import ArraySplit, DataBundle, Images, channel_statistics
from penjing.errors import DataError

SIZE = 32
CLASSES = (
    "23456789ABCDEFGHJKLMNPQRSTUVWXYZadefhmntþΓΔΘΛΞΠΣΦΨΩβδελξσωμБДЖИЦЧШЫЮЯЊ&@#%$?!+=*§{}<>/~£¥©¶‡±÷«»¿Æ¤™"
)
FACES = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSans-BoldOblique",
        "STIXGeneral",
        "STIXGeneralBol",
        "STIXGeneralItalic",
        "STIXGeneralBolIta",
    ),
    "val": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    "test": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
}
_MASK = 96  # side of a cached glyph drawing, in pixels
_EXTENT = 60  # longest side of the ink in it
_SUPER = 2  # images are sampled at 2× and averaged down, so that small glyphs do not alias


def glyphs(
    seed: int = 0, per_class: tuple[int, int, int] = (100, 20, 50), *, num_classes: int = len(CLASSES)
) -> DataBundle:
    """Draw the glyph data set.

    Args:
        seed: Draws all randomness; the same seed gives the same bytes.
        per_class: Images of each class in train, val and test.
        num_classes: Use only the first so many classes (at least 2), for small experiments.

    Raises:
        DataError: for a count out of range.
    """
    if not 2 <= num_classes <= len(CLASSES):
        raise DataError(f"num_classes is {num_classes}", remedy=f"Give 2 to {len(CLASSES)} classes")
    if len(per_class) != 3 or min(per_class) < 1:
        raise DataError(
            f"per_class is {per_class}", remedy="Give three positive counts: for train, validation and test"
        )
    classes = tuple(CLASSES[:num_classes])
    splits = {
        name: _draw(name, classes, count, np.random.default_rng((seed, number)))
        for number, (name, count) in enumerate(zip(FACES, per_class, strict=True))
    }
    mean, std = channel_statistics(splits["train"])
    return DataBundle(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        classes=classes,
        mean=mean,
        std=std,
        image_shape=(1, SIZE, SIZE),
        source="glyphs",
    )


def _draw(name: str, classes: Sequence[str], per_class: int, rng: np.random.Generator) -> ArraySplit:
    faces = FACES[name]
    labels = np.repeat(np.arange(len(classes)), per_class)
    # Faces take turns within a class, so that each has its share to within one.
    face = np.tile(np.arange(per_class) % len(faces), len(classes))
    inverse_N6 = _affine(len(labels), rng)
    side = SIZE * _SUPER
    ink = np.empty((len(labels), side, side), dtype=np.uint8)
    for i, (label, which) in enumerate(zip(labels, face, strict=True)):
        mask = _mask(faces[int(which)], classes[int(label)])
        moved = mask.transform(
            (side, side), Image.Transform.AFFINE, tuple(inverse_N6[i]), Image.Resampling.BILINEAR
        )
        ink[i] = np.asarray(moved)
    small = ink.reshape(-1, SIZE, _SUPER, SIZE, _SUPER).mean(axis=(2, 4), dtype=np.float32) / np.float32(255)
    # Shuffled once: whoever takes the first n samples must not get the first classes only.
    order = rng.permutation(len(labels))
    images = _degrade(small, rng)
    return ArraySplit(images[order], labels[order], classes, name)


@lru_cache(maxsize=4096)
def _mask(face: str, glyph: str) -> Image.Image:
    """One glyph, white on black, centred by its ink, in a square of `_MASK` pixels."""
    font = _font(face)
    left, top, right, bottom = font.getbbox(glyph)
    width, height = right - left, bottom - top
    # Halfway (geometric mean) between the size the face gives a glyph and filling the square: a '~' stays
    # smaller than an 'M' but has pixels enough to be seen.
    longest = max(width, height)
    scale = _EXTENT / longest * min(1.0, (longest / font.size) ** 0.5)
    drawn = Image.new("L", (int(width) + 4, int(height) + 4))
    ImageDraw.Draw(drawn).text((2 - left, 2 - top), glyph, fill=255, font=font)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    square = Image.new("L", (_MASK, _MASK))
    square.paste(drawn.resize(size, Image.Resampling.BOX), ((_MASK - size[0]) // 2, (_MASK - size[1]) // 2))
    return square


@lru_cache(maxsize=32)
def _font(face: str) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    return ImageFont.truetype(path, size=2 * _MASK, layout_engine=ImageFont.Layout.BASIC)


def _affine(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Inverse maps (output pixel → mask pixel) as PIL wants them, ``(count, 6)``."""
    angle = np.deg2rad(rng.uniform(-12, 12, count))
    shear = rng.uniform(-0.2, 0.2, count)
    # Pixels of output per pixel of mask: the ink is then about 18 to 29 of 32 pixels long.
    scale = rng.uniform(0.68, 0.96, count) * (SIZE * _SUPER / _EXTENT)
    aspect = np.exp(rng.uniform(-0.12, 0.12, count))
    shift_N2 = rng.uniform(-2.5, 2.5, (count, 2)) * _SUPER
    cos, sin = np.cos(angle), np.sin(angle)
    # Forward: scale and aspect, then shear along x, then rotate; inverted in closed form.
    forward = np.empty((count, 2, 2))
    forward[:, 0, 0] = cos * scale * aspect
    forward[:, 0, 1] = (cos * shear - sin) * scale / aspect
    forward[:, 1, 0] = sin * scale * aspect
    forward[:, 1, 1] = (sin * shear + cos) * scale / aspect
    inverse = np.linalg.inv(forward)
    centre_out = np.full((count, 2), SIZE * _SUPER / 2) + shift_N2
    offset = _MASK / 2 - np.einsum("nij,nj->ni", inverse, centre_out)
    return np.stack(
        [inverse[:, 0, 0], inverse[:, 0, 1], offset[:, 0], inverse[:, 1, 0], inverse[:, 1, 1], offset[:, 1]],
        axis=1,
    )


def _degrade(ink_NHW: NDArray[np.float32], rng: np.random.Generator) -> Images:
    """Blur, contrast, occlusion and noise; ``[0, 1]`` → uint8 ``NHWC``."""
    count = len(ink_NHW)
    images = _blur(ink_NHW, rng.uniform(0.0, 1.2, count).astype(np.float32))
    paper = rng.uniform(0.0, 0.35, (count, 1, 1)).astype(np.float32)
    pen = rng.uniform(0.6, 1.0, (count, 1, 1)).astype(np.float32)
    images = paper + (pen - paper) * images
    images = _occlude(images, rng)
    images += rng.standard_normal(images.shape, dtype=np.float32) * rng.uniform(
        0, 0.14, (count, 1, 1)
    ).astype(np.float32)
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)[..., None]


def _blur(images_NHW: NDArray[np.float32], sigma_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """Separable Gaussian of 5 taps, each image with its own width in pixels."""
    taps = np.arange(-2, 3, dtype=np.float32)
    kernel_N5 = np.exp(-0.5 * (taps / np.maximum(sigma_N[:, None], 1e-3)) ** 2)
    kernel_N5 /= kernel_N5.sum(axis=1, keepdims=True)
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (2, 2)
        padded = np.pad(images_NHW, pad)
        images_NHW = sum(  # type: ignore[assignment]
            kernel_N5[:, k, None, None] * np.take(padded, np.arange(k, k + SIZE), axis=axis) for k in range(5)
        )
    return images_NHW


def _occlude(images_NHW: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A grey rectangle of 4 to 10 pixels a side over two images in five."""
    count = len(images_NHW)
    height, width = rng.integers(4, 11, (2, count, 1, 1))
    top, left = rng.integers(0, SIZE - 4, (2, count, 1, 1))
    level = rng.uniform(0, 1, (count, 1, 1)).astype(np.float32)
    hit = rng.random((count, 1, 1)) < 0.4
    row, column = np.arange(SIZE)[None, :, None], np.arange(SIZE)[None, None, :]
    inside = hit & (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return np.where(inside, level, images_NHW)


def contact_sheet(split: ArraySplit, columns: int = 20, *, samples: int = 1, zoom: int = 2) -> Image.Image:
    """A picture of the first ``samples`` images of each class, class after class, to look at."""
    tiles: list[Images] = []
    for label in range(len(split.classes)):
        tiles.extend(split.images[np.flatnonzero(split.labels == label)[:samples], :, :, 0])
    rows = -(-len(tiles) // columns)
    height, width, _ = split.image_shape
    sheet = np.zeros((rows * (height + 2), columns * (width + 2)), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        sheet[top : top + height, left : left + width] = tile
    picture = Image.fromarray(sheet)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
