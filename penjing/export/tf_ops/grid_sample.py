"""Sampling an image or volume at given places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op
from penjing.export.tf_ops.value import Tensor, Value

_CUBIC_A = -0.75

Tap = tuple[Tensor, Tensor | float]
"""A pixel's place along one dimension, whole but not yet an integer, and its weight."""


@op("GridSample")
def _grid_sample(node: Node) -> Value:
    """``[N, …, C]`` at ``[N, …, D]`` places between −1 and 1, the last dimension's first."""
    x, grid = node.value().last(), node.x(1)
    mode, padding = node.text("mode", "linear"), node.text("padding_mode", "zeros")
    sizes = [int(size) for size in x.shape[1:-1]]
    corners = bool(node.attr("align_corners", 0))
    taps = []
    for dim, size in enumerate(sizes):
        place = (grid[..., len(sizes) - 1 - dim] + 1) * ((size - corners) / 2) - (0.0 if corners else 0.5)
        taps.append(_taps(place, mode, _INTO[padding](size, corners)))
    return Value(last=mixed(x, taps, sizes, zeros=padding == "zeros"))


def mixed(
    x: Tensor,
    taps: Sequence[Sequence[Tap]],
    sizes: Sequence[int],
    *,
    zeros: bool,
    then: Sequence[Tensor] = (),
) -> Tensor:
    """Pixels of ``[N, *sizes, …]`` by their weights.

    Args:
        x: Images.
        taps: For each spatial dimension.
        sizes: Of these dimensions.
        zeros: Whether there is nothing outside; else places are inside.
        then: Indices of the dimensions after the spatial ones.
    """
    out = 0.0
    for combined in product(*taps):
        weight: Tensor = prod(weight for _, weight in combined)
        index = []
        for (place, _), size in zip(combined, sizes, strict=True):
            if zeros:
                weight *= tf.cast((place >= 0) & (place <= size - 1), x.dtype)
            index.append(tf.cast(tf.clip_by_value(place, 0.0, size - 1.0), tf.int32))
        found = tf.gather_nd(x, tf.stack([*index, *then], -1), batch_dims=1)
        out = out + found * weight[..., tf.newaxis]
    return out


def _taps(place: Tensor, mode: str, into: Callable[[Tensor], Tensor]) -> list[Tap]:
    """The pixels that are mixed; cubic ones are brought into the image each by itself, as in torch."""
    if "cubic" in mode:
        first = tf.floor(place)
        return [(into(first + i), _cubic(tf.abs(place - first - i))) for i in (-1, 0, 1, 2)]
    place = into(place)
    if mode == "nearest":
        whole = tf.round(place)
        return [(whole, tf.ones_like(whole))]
    return linear_taps(place)


def linear_taps(place: Tensor) -> list[Tap]:
    """The two pixels beside a place, each the heavier the nearer."""
    first = tf.floor(place)
    return [(first + i, 1 - tf.abs(place - first - i)) for i in (0, 1)]


def _cubic(away: Tensor) -> Tensor:
    a = _CUBIC_A
    near = ((a + 2) * away - (a + 3)) * away * away + 1
    far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    return tf.where(away <= 1, near, far)


def _border(size: int, corners: bool) -> Callable[[Tensor], Tensor]:
    return lambda place: tf.clip_by_value(place, 0.0, size - 1.0)


def _reflection(size: int, corners: bool) -> Callable[[Tensor], Tensor]:
    """Mirrored at the outer pixels' centres, or at their edges."""
    low, span = (0.0, size - 1.0) if corners else (-0.5, float(size))

    def mirrored(place: Tensor) -> Tensor:
        if not span:
            return tf.zeros_like(place)
        within = tf.math.floormod(place - low, 2 * span)
        return tf.clip_by_value(tf.minimum(within, 2 * span - within) + low, 0.0, size - 1.0)

    return mirrored


_INTO = {"zeros": lambda size, corners: lambda place: place, "border": _border, "reflection": _reflection}
