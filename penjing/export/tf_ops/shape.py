"""Ops that move or reshape without computing: reshape, transpose, concat, split, slice, pad, tile, expand."""

from __future__ import annotations

from typing import Any

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.broadcast import open_sizes, size_of
from penjing.export.tf_ops.few import in_few
from penjing.export.tf_ops.node import Node, held_axis, op, plain, same_order
from penjing.export.tf_ops.value import Tensor, Value, to_first, to_last


@op("Reshape")
def _reshape(node: Node) -> Value:
    x = node.x(0)
    return plain(tf.reshape(x, _target(node, x)))


def _target(node: Node, x: Tensor) -> Any:
    """The new shape with as many fixed numbers as are known."""
    wished, known = node.value(1), node.out_shapes[0]
    parts = wished.parts if wished.const is None else [int(d) for d in wished.const.reshape(-1)]
    if parts is None:
        if known is not None and sum(d is None for d in known) <= 1:
            return [-1 if d is None else d for d in known]
        return wished.plain()
    dims: list[Any] = []
    for i, dim in enumerate(parts):
        if isinstance(dim, int) and dim == 0 and not node.attr("allowzero", 0):
            size = x.shape[i]
            dims.append(tf.shape(x, out_type=tf.int64)[i] if size is None else int(size))
        else:
            dims.append(dim)
    if known is not None and len(known) == len(dims):
        dims = [k if k is not None else d for k, d in zip(known, dims, strict=True)]
    free = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    if len(free) == 1 and -1 not in [d for d in dims if isinstance(d, int)]:
        dims[free[0]] = -1
        return dims
    return dims if not free else tf.stack([tf.cast(d, tf.int64) for d in dims])


@op("Flatten")
def _flatten(node: Node) -> Value:
    x = node.x(0)
    axis = node.axis(1)
    shape = x.shape.as_list()
    lead, tail = shape[:axis], shape[axis:]
    if None not in tail:
        return plain(tf.reshape(x, [-1, int(np.prod(tail, dtype=np.int64))]))
    if None not in lead:
        return plain(tf.reshape(x, [int(np.prod(lead, dtype=np.int64)), -1]))
    return plain(tf.reshape(x, tf.stack([tf.reduce_prod(tf.shape(x)[:axis]), -1])))


@op("Transpose")
def _transpose(node: Node) -> Value:
    value, rank = node.value(), node.rank()
    perm = [int(p) for p in node.attr("perm", range(rank - 1, -1, -1))]
    if value.is_last:
        held = [to_last(rank).index(p) for p in perm]
        x = value.tensor()
        return plain(x if held == list(range(rank)) else tf.transpose(x, held))
    if rank >= 3 and perm == to_first(rank):
        return Value(last=value.plain())  # already channels last: only the reading changes
    return plain(_transposed(value.plain(), perm))


def _transposed(x: Tensor, perm: list[int]) -> Tensor:
    """A transpose; one of more than six dimensions, which LiteRT lacks, with those that stay together as
    one."""
    shape = x.shape.as_list()
    runs: list[list[int]] = []
    for axis in perm:
        if runs and axis == runs[-1][-1] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    if len(perm) <= 6 or len(runs) == len(perm) or shape.count(None) > 1:
        return tf.transpose(x, perm)
    ordered = sorted(runs)
    sizes = [[shape[axis] for axis in run] for run in ordered]
    joined = tf.reshape(x, [size_of(run) for run in sizes])
    moved = tf.transpose(joined, [ordered.index(run) for run in runs])
    return tf.reshape(moved, open_sizes([shape[axis] for axis in perm]))


@op("Concat")
def _concat(node: Node) -> Value:
    values = [node.value(i) for i in range(len(node.inputs))]
    axis = node.axis(0)
    # Long operands decide: a short plain one (a class token) is turned rather than the image.
    if any(v.is_last for v in values):
        rank = node.rank(next(i for i, v in enumerate(values) if v.is_last))
        return Value(last=_joined([v.last() for v in values], to_last(rank).index(axis)))
    return plain(_joined([v.plain() for v in values], axis))


def _joined(tensors: list[Tensor], axis: int) -> Tensor:
    return in_few(lambda ts, axes: tf.concat(ts, axes[0]), tensors, [axis])


@op("Split")
def _split(node: Node) -> list[Value]:
    value = node.value()
    axis = held_axis(value, node.axis(0))
    sizes = node.ints("split", 1)
    size = value.tensor().shape[axis]
    if sizes is None:
        count = int(node.attr("num_outputs", node.num_outputs))
        if size is None:
            raise node.error("the length of the axis it splits is unknown")
        chunk = -(-size // count)
        sizes = [min(chunk, size - chunk * i) for i in range(count)]
    return [same_order(value, part) for part in tf.split(value.tensor(), sizes, axis)]


@op("Slice")
def _slice(node: Node) -> Value:
    value, rank = node.value(), node.rank()
    starts, ends = _bounds(node, "starts", 1), _bounds(node, "ends", 2)
    axes = node.ints("axes", 3) or list(range(len(starts)))
    steps = node.ints("steps", 4) or [1] * len(starts)
    picks = {
        held_axis(value, axis + rank if axis < 0 else axis): slice(
            _first(start, step), _stop(end, step), step
        )
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
    }
    return same_order(value, _picked(value.tensor(), picks))


def _picked(x: Tensor, picks: dict[int, slice]) -> Tensor:
    def cut(tensors: list[Tensor], axes: list[int]) -> Tensor:
        chosen = dict(zip(axes, picks.values(), strict=True))
        return tensors[0][tuple(chosen.get(i, slice(None)) for i in range(tensors[0].shape.rank))]

    return in_few(cut, [x], list(picks))


def _bounds(node: Node, attribute: str, index: int) -> list[Any]:
    if attribute in node.attributes:
        return [int(i) for i in node.attributes[attribute]]
    value = node.value(index)
    if value.const is not None:
        return [int(i) for i in value.const.reshape(-1)]
    if value.parts is not None:
        return list(value.parts)
    if not value.shape or value.shape[0] is None:
        raise node.error(f"the number of its {attribute} is unknown")
    return [value.plain()[i] for i in range(value.shape[0])]  # LiteRT unpacks no int64


_FAR = 2**31 - 1


def _first(start: Any, step: int) -> Any:
    if not isinstance(start, int):
        return start
    if step < 0 and start >= _FAR:
        return None
    return max(min(start, _FAR), -_FAR)


def _stop(end: Any, step: int) -> Any:
    if not isinstance(end, int):
        return end
    if (step > 0 and end >= _FAR) or (step < 0 and end <= -_FAR):
        return None
    return max(min(end, _FAR), -_FAR)


@op("Squeeze")
def _squeeze(node: Node) -> Value:
    value, rank = node.value(), node.rank()
    axes = node.ints("axes", 1)
    shape = value.shape or []
    chosen = (
        [i for i, d in enumerate(shape) if d == 1]
        if axes is None
        else [a + rank if a < 0 else a for a in axes]
    )
    if value.is_last and sorted(chosen) == list(range(2, rank)):
        return plain(tf.squeeze(value.tensor(), list(range(1, rank - 1))))
    x = value.plain()
    if shape.count(None) > 1:  # where LiteRT's converter refuses its own squeeze
        for axis in sorted(chosen, reverse=True):
            x = tf.gather(x, 0, axis=axis)
        return plain(x)
    return plain(tf.squeeze(x, chosen) if chosen else x)


@op("Unsqueeze")
def _unsqueeze(node: Node) -> Value:
    x = node.x(0)
    axes = node.ints("axes", 1) or []
    rank = node.rank() + len(axes)
    for axis in sorted(a + rank if a < 0 else a for a in axes):
        x = tf.expand_dims(x, axis)
    return plain(x)


@op("Expand")
def _expand(node: Node) -> Value:
    x = node.x(0)
    wished = node.value(1)
    shape = x.shape.as_list()
    target = wished.plain()
    if wished.const is not None and None not in shape:
        return plain(tf.broadcast_to(x, np.broadcast_shapes(tuple(shape), tuple(wished.const.reshape(-1)))))
    if all(size == 1 for size in shape) and len(shape) <= (target.shape[0] or 0):
        return plain(tf.broadcast_to(x, target))  # BroadcastArgs would hide the sizes from converters
    own = tf.shape(x, out_type=target.dtype)
    return plain(tf.broadcast_to(x, tf.broadcast_dynamic_shape(own, target)))


@op("Tile")
def _tile(node: Node) -> Value:
    return plain(tf.tile(node.x(0), node.x(1)))


@op("Shape")
def _shape(node: Node) -> Value:
    rank = node.rank()
    dims = tf.shape(node.x(0), out_type=tf.int64)
    return plain(dims[int(node.attr("start", 0)) : int(node.attr("end", rank))])


@op("Size")
def _size(node: Node) -> Value:
    return plain(tf.size(node.value().tensor(), out_type=tf.int64))


@op("Pad")
def _pad(node: Node) -> Value:
    value, rank = node.value(), node.rank()
    given = node.ints("pads", 1) or []
    axes = [int(a) for a in np.atleast_1d(node.static(3, "axes"))] if node.has(3) else list(range(rank))
    pads = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pads[held_axis(value, axis)] = (given[i], given[i + len(axes)])
    mode = node.text("mode", "constant")
    x = value.tensor()
    cut = {i: slice(max(-b, 0), None if a >= 0 else a) for i, (b, a) in enumerate(pads) if b < 0 or a < 0}
    x = _picked(x, cut) if cut else x
    pads = [(max(b, 0), max(a, 0)) for b, a in pads]
    if mode == "constant":
        fill = node.attr("value", 0.0) if "value" in node.attributes else 0.0
        filler = tf.cast(node.x(2), x.dtype) if node.has(2) else tf.cast(fill, x.dtype)
        padded = {axis: pad for axis, pad in enumerate(pads) if any(pad)}

        def pad(tensors: list[Tensor], axes: list[int]) -> Tensor:
            at = dict(zip(axes, padded.values(), strict=True))
            ends = [at.get(i, (0, 0)) for i in range(tensors[0].shape.rank)]
            return tf.pad(tensors[0], ends, constant_values=tf.reshape(filler, []))

        return same_order(value, in_few(pad, [x], list(padded)))
    for axis, (before, after) in enumerate(pads):
        if before or after:
            size = x.shape[axis]
            if size is None:
                at = _free_indices(before, after, tf.shape(x)[axis], mode)
            else:
                at = _indices(np.arange(-before, size + after), size, mode)
            x = tf.gather(x, at, axis=axis)
    return same_order(value, x)


def _indices(at: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Where each padded position reads from."""
    if mode == "edge":
        return at.clip(0, size - 1)
    if mode == "wrap":
        return at % size
    period = max(2 * (size - 1), 1)  # reflect, without repeating the edge
    folded = np.abs(at) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(at)


def _free_indices(before: int, after: int, size: Tensor, mode: str) -> Tensor:
    """The same for a size that the caller of the file chooses."""
    at = tf.range(-before, size + after)
    if mode == "edge":
        return tf.clip_by_value(at, 0, size - 1)
    if mode == "wrap":
        return tf.math.floormod(at, size)
    period = tf.maximum(2 * (size - 1), 1)
    folded = tf.math.floormod(tf.abs(at), period)
    return tf.minimum(folded, period - folded) * tf.cast(size > 1, at.dtype)


@op("DepthToSpace")
def _depth_to_space(node: Node) -> Value:
    x, block = node.value().last(), int(node.attr("blocksize"))
    mode = node.attr("mode", "DCR")
    if mode in (b"DCR", "DCR"):
        return Value(last=tf.nn.depth_to_space(x, block))
    # Column-row-depth order: bring the channels into the order that TensorFlow reads.
    depth = x.shape[-1] // (block * block)
    order = np.arange(depth * block * block).reshape(depth, block * block).T.reshape(-1)
    return Value(last=tf.nn.depth_to_space(tf.gather(x, order, axis=-1), block))


@op("SpaceToDepth")
def _space_to_depth(node: Node) -> Value:
    return Value(last=tf.nn.space_to_depth(node.value().last(), int(node.attr("blocksize"))))
