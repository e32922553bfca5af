"""Broadcasting in few dimensions: LiteRT's kernels that broadcast know four, some of them five.

Neighbouring dimensions along which every operand does the same (all of it, or one element repeated) are one
dimension to a broadcasting op. ``(7, 6, 1, 1)`` against ``(n, 2, 7, 6, 7, 6)`` is ``(1, 42, 1)`` against
``(2n, 42, 42)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.value import Tensor

Size = int | None


def broadcast(function: Callable[..., Tensor], tensors: Sequence[Tensor], rank: int) -> Tensor:
    """``function`` of operands that broadcast, in no more than ``rank`` dimensions where that can be done.

    Args:
        function: Works element by element on operands of any rank.
        tensors: Operands.
        rank: Dimensions the kernel knows.
    """
    shapes = [t.shape.as_list() if t.shape.rank is not None else None for t in tensors]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or max(map(len, known)) <= rank or all(s == known[0] for s in known):
        return function(*tensors)
    wide = max(map(len, known))
    padded = [[1] * (wide - len(shape)) + shape for shape in known]
    groups = merged(padded)
    out = [_joint(sizes) for sizes in zip(*padded, strict=True)]
    targets = [[size_of([shape[i] for i in group]) for group in groups] for shape in padded] if groups else []
    if groups is None or len(groups) > rank or any(t.count(-1) > 1 for t in (*targets, open_sizes(out))):
        return function(*tensors)
    folded = [tf.reshape(t, target) for t, target in zip(tensors, targets, strict=True)]
    return tf.reshape(function(*folded), open_sizes(out))


def merged(shapes: Sequence[Sequence[Size]]) -> list[list[int]] | None:
    """Runs of dimensions that can be one, for shapes of equal length (None: free); None where a free size
    meets a fixed one, so that nobody knows whether it is repeated."""
    groups: list[list[int]] = []
    last: tuple[bool, ...] | None = None
    for i, sizes in enumerate(zip(*shapes, strict=True)):
        if None in sizes and any(s is not None and s != 1 for s in sizes):
            return None
        alone = all(size == 1 for size in sizes)
        repeated = tuple(size == 1 for size in sizes)
        if groups and (alone or last is None or repeated == last):
            groups[-1].append(i)
        else:
            groups.append([i])
        last = last if alone else repeated
    return groups


def _joint(sizes: Sequence[Size]) -> Size:
    return None if None in sizes else max(size for size in sizes if size is not None)


def size_of(sizes: Sequence[Size]) -> int:
    """Dimensions as one, for a reshape."""
    return -1 if None in sizes else math.prod(size for size in sizes if size is not None)


def open_sizes(shape: Sequence[Size]) -> list[int]:
    """A shape with what is free left to a reshape."""
    return [-1 if size is None else size for size in shape]
