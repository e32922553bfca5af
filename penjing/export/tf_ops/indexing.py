"""Reading and writing by index; sorting and selecting."""

from __future__ import annotations

from typing import Any

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, held_axis, op, plain, same_order
from penjing.export.tf_ops.value import Tensor, Value


@op("Gather")
def _gather(node: Node) -> Value:
    value, index = node.value(0), node.value(1)
    axis = node.axis(0)
    held = held_axis(value, axis)
    x = value.tensor()
    if index.rank == 1 and value.is_last:
        return same_order(value, tf.gather(x, _counted_from_front(node, x, held), axis=held))
    return plain(tf.gather(value.plain(), _counted_from_front(node, value.plain(), axis), axis=axis))


def _counted_from_front(node: Node, x: Tensor, axis: int) -> Any:
    """Indices with negative ones turned into positions from the front."""
    index = node.value(1)
    size = x.shape[axis] if x.shape[axis] is not None else tf.shape(x, out_type=tf.int64)[axis]
    if index.const is not None:
        if np.all(index.const >= 0):
            return index.const
        if isinstance(size, int):
            return np.where(index.const < 0, index.const + size, index.const)
    at = index.plain()
    return tf.where(at < 0, at + tf.cast(size, at.dtype), at)


@op("GatherND")
def _gather_nd(node: Node) -> Value:
    x, index = node.x(0), node.x(1)
    dims = int(node.attr("batch_dims", 0))
    return plain(tf.gather_nd(x, _wrapped_nd(x, index, dims), batch_dims=dims))


def _wrapped_nd(x: Tensor, index: Tensor, batch_dims: int = 0) -> Tensor:
    width = index.shape[-1]
    sizes = tf.shape(x, out_type=index.dtype)[batch_dims : batch_dims + width]
    return tf.where(index < 0, index + sizes, index)


@op("GatherElements")
def _gather_elements(node: Node) -> Value:
    x = node.x(0)
    axis = node.axis(0)
    return plain(tf.gather_nd(x, _element_positions(x, node.x(1), axis)))


def _element_positions(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Full coordinates of each element that ``index`` names along ``axis``."""
    index = tf.cast(index, tf.int64)
    size = tf.shape(x, out_type=tf.int64)[axis]
    index = tf.where(index < 0, index + size, index)
    shape = tf.shape(index, out_type=tf.int64)
    grids = tf.meshgrid(*[tf.range(shape[i]) for i in range(index.shape.rank)], indexing="ij")
    grids[axis] = index
    return tf.stack(grids, -1)


_SCATTER = {
    "none": tf.tensor_scatter_nd_update,
    "add": tf.tensor_scatter_nd_add,
    "max": tf.tensor_scatter_nd_max,
    "min": tf.tensor_scatter_nd_min,
}


def _scatter_rule(node: Node) -> Any:
    reduction = node.text("reduction", "none")
    if reduction not in _SCATTER:
        raise node.error(f"reduction {reduction!r}")
    return _SCATTER[reduction]


@op("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Value:
    x = node.x(0)
    return plain(_scatter_rule(node)(x, _element_positions(x, node.x(1), node.axis(0)), node.x(2)))


@op("ScatterND")
def _scatter_nd(node: Node) -> Value:
    x = node.x(0)
    if x.shape.num_elements() == 0 or node.x(2).shape.num_elements() == 0:
        return plain(x)  # nothing is written; TensorFlow refuses to write nothing into nothing
    return plain(_scatter_rule(node)(x, _wrapped_nd(x, node.x(1)), node.x(2)))


@op("OneHot")
def _one_hot(node: Node) -> Value:
    index, depth = node.x(0), node.static(1, "depth")
    off, on = tf.unstack(node.x(2), 2)
    size = int(depth.reshape(()))
    at = tf.cast(index, tf.int64)
    at = tf.where(at < 0, at + size, at)
    return plain(
        tf.one_hot(at, size, on_value=on, off_value=off, axis=int(node.attr("axis", -1)), dtype=on.dtype)
    )


@op("TopK")
def _top_k(node: Node) -> list[Value]:
    x, rank = node.x(0), node.rank()
    axis = node.axis(-1)
    largest = bool(node.attr("largest", 1))
    k = tf.reshape(tf.cast(node.x(1), tf.int32), []) if node.has(1) else int(node.attr("k"))
    perm = [i for i in range(rank) if i != axis] + [axis]
    moved = x if axis == rank - 1 else tf.transpose(x, perm)
    if largest:
        values, places = tf.math.top_k(moved, k)
    else:
        values, places = tf.math.top_k(-moved, k)
        values = -values
    back = [int(i) for i in np.argsort(perm)]
    places = tf.cast(places, tf.int64)
    if axis != rank - 1:
        values, places = tf.transpose(values, back), tf.transpose(places, back)
    return [plain(values), plain(places)]


@op("NonZero")
def _non_zero(node: Node) -> Value:
    x = node.x(0)
    return plain(tf.transpose(tf.where(x if x.dtype == tf.bool else tf.not_equal(x, tf.cast(0, x.dtype)))))


@op("NonMaxSuppression")
def _non_max_suppression(node: Node) -> Value:
    boxes, scores = node.x(0), node.x(1)  # (batch, boxes, 4), (batch, classes, boxes)
    limit = tf.reshape(tf.cast(node.x(2), tf.int32), []) if node.has(2) else tf.constant(0)
    overlap = tf.reshape(node.x(3), []) if node.has(3) else tf.constant(0.0)
    lowest = tf.reshape(node.x(4), []) if node.has(4) else tf.constant(float("-inf"))
    batch, classes = scores.shape[0], scores.shape[1]
    if batch is None or classes is None:
        raise node.error("it needs a fixed batch and number of classes")
    found = []
    for n in range(batch):
        corners = boxes[n]
        if int(node.attr("center_point_box", 0)):
            centre, half = corners[:, :2], corners[:, 2:] / 2
            corners = tf.concat([centre - half, centre + half], -1)
        for c in range(classes):
            picked = tf.image.non_max_suppression(corners, scores[n, c], limit, overlap, lowest)
            rows = tf.cast(picked, tf.int64)
            found.append(
                tf.stack(
                    [tf.fill(tf.shape(rows), np.int64(n)), tf.fill(tf.shape(rows), np.int64(c)), rows], 1
                )
            )
    return plain(tf.concat(found, 0))


@op("Trilu")
def _trilu(node: Node) -> Value:
    x = node.x(0)
    k = tf.cast(tf.reshape(node.x(1), []), tf.int64) if node.has(1) else tf.constant(0, tf.int64)
    shape = tf.shape(x, out_type=tf.int64)
    away = tf.range(shape[-1])[tf.newaxis, :] - tf.range(shape[-2])[:, tf.newaxis]
    keep = away >= k if node.attr("upper", 1) else away <= k
    return plain(tf.where(keep, x, tf.zeros_like(x)))


@op("Compress")
def _compress(node: Node) -> Value:
    if "axis" not in node.attributes:
        return plain(tf.boolean_mask(tf.reshape(node.x(0), [-1]), node.x(1)))
    return plain(tf.boolean_mask(node.x(0), node.x(1), axis=node.axis(0)))
