"""Laying blocks back into an image: the sum of a sliding window's columns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op, plain
from penjing.export.tf_ops.value import Value


@op("Col2Im")
def _col2im(node: Node) -> Value:
    """(N, C·block, L) → (N, C, image…): each pixel gathers the few elements that land on it."""
    x = node.x(0)
    image = [int(n) for n in node.static(1, "image_shape").reshape(-1)]
    block = [int(n) for n in node.static(2, "block_shape").reshape(-1)]
    count, size = len(image), int(np.prod(block))
    pads = [int(p) for p in node.attr("pads", [0] * (2 * count))]
    strides = [int(s) for s in node.attr("strides", [1] * count)]
    dilations = [int(d) for d in node.attr("dilations", [1] * count)]
    if x.shape[1] is None:
        raise node.error("the number of its channels is unknown")
    ends = [(pads[i], pads[i + count]) for i in range(count)]
    sources, width = landing(image, block, strides, dilations, ends)
    columns = tf.reshape(x, [-1, x.shape[1] // size, width])
    columns = tf.pad(columns, [(0, 0), (0, 0), (0, 1)])  # the last element is the zero that nothing lands on
    out = tf.reduce_sum(tf.gather(columns, sources, axis=-1), -1)
    return plain(tf.reshape(out, [-1, x.shape[1] // size, *image]))


def landing(
    image: Sequence[int],
    block: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> tuple[np.ndarray, int]:
    """For each pixel, the positions in (block, windows), flattened, that are summed there; (pixels, most).

    Rows are filled up with the number of positions, one beyond the last; that number is given as well.
    """
    windows = [
        (n + before + after - (k - 1) * d - 1) // s + 1
        for n, k, s, d, (before, after) in zip(image, block, strides, dilations, pads, strict=True)
    ]
    total = int(np.prod(windows))
    found: list[list[int]] = [[] for _ in range(int(np.prod(image)))]
    for place, offset in enumerate(itertools.product(*map(range, block))):
        first = [o * d - before for o, d, (before, _) in zip(offset, dilations, pads, strict=True)]
        for window, start in enumerate(itertools.product(*map(range, windows))):
            at = [f + i * s for f, i, s in zip(first, start, strides, strict=True)]
            if all(0 <= a < n for a, n in zip(at, image, strict=True)):
                found[int(np.ravel_multi_index(at, image))].append(place * total + window)
    most = max(1, *map(len, found))
    none = int(np.prod(block)) * total
    return np.array([row + [none] * (most - len(row)) for row in found], np.int64), none
