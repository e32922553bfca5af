"""Ops along some axes in few dimensions: LiteRT's kernels know five or six, TensorFlow's softmax five.

Neighbouring dimensions that an op leaves alone are one dimension to it. A softmax over the nine of
``(n, 1, 9, 8, 8, h, w)``, as where optical flow is sampled up, is one over those of ``(n, 9, 64 · h · w)``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.broadcast import open_sizes, size_of
from penjing.export.tf_ops.value import Tensor

FEW = 5
"""Dimensions that every kernel knows."""


def in_few(
    function: Callable[[list[Tensor], list[int]], Tensor], tensors: list[Tensor], axes: Collection[int]
) -> Tensor:
    """``function(tensors, axes)``; where there are more than ``FEW`` dimensions, runs of others are one.

    Args:
        function: Of tensors and axes. What it gives has their number of dimensions, and their sizes but in
            ``axes``.
        tensors: Of one shape but in ``axes``.
        axes: Where it works, none negative.
    """
    shapes = [t.shape.as_list() for t in tensors]
    if len(shapes[0]) <= FEW or any(shape.count(None) > 1 for shape in shapes):
        return function(tensors, list(axes))
    groups: list[list[int]] = []
    for axis in range(len(shapes[0])):
        if groups and axis not in axes and groups[-1][-1] not in axes:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    folded = [
        tf.reshape(t, [size_of([shape[axis] for axis in group]) for group in groups])
        for t, shape in zip(tensors, shapes, strict=True)
    ]
    out = function(folded, [groups.index([axis]) for axis in axes])
    sizes = list(shapes[0])
    for axis in axes:
        sizes[axis] = out.shape[groups.index([axis])]
    if sizes.count(None) > 1:
        return function(tensors, list(axes))
    return tf.reshape(out, open_sizes(sizes))
