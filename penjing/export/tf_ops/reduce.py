"""Reductions."""

from __future__ import annotations

from collections.abc import Callable

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.few import FEW, in_few
from penjing.export.tf_ops.node import Node, held_axis, op, plain, same_order
from penjing.export.tf_ops.value import Tensor, Value


def _log_sum(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return tf.math.log(tf.reduce_sum(x, axes, keepdims=keepdims))


REDUCE: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": lambda x, axes, keepdims: tf.reduce_sum(tf.abs(x), axes, keepdims=keepdims),
    "ReduceL2": lambda x, axes, keepdims: tf.sqrt(tf.reduce_sum(tf.square(x), axes, keepdims=keepdims)),
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": lambda x, axes, keepdims: tf.reduce_logsumexp(x, axes, keepdims=keepdims),
    "ReduceMax": lambda x, axes, keepdims: tf.reduce_max(x, axes, keepdims=keepdims),
    "ReduceMean": lambda x, axes, keepdims: tf.reduce_mean(x, axes, keepdims=keepdims),
    "ReduceMin": lambda x, axes, keepdims: tf.reduce_min(x, axes, keepdims=keepdims),
    "ReduceProd": lambda x, axes, keepdims: tf.reduce_prod(x, axes, keepdims=keepdims),
    "ReduceSum": lambda x, axes, keepdims: tf.reduce_sum(x, axes, keepdims=keepdims),
    "ReduceSumSquare": lambda x, axes, keepdims: tf.reduce_sum(tf.square(x), axes, keepdims=keepdims),
}


def _reduce(node: Node) -> Value:
    value, rule = node.value(), REDUCE[node.op]
    axes = node.ints("axes", 1)
    if not axes:
        if node.attr("noop_with_empty_axes", 0):
            return value
        axes = list(range(node.rank()))
    rank = node.rank()
    axes = sorted(axis + rank if axis < 0 else axis for axis in axes)
    keep = bool(node.attr("keepdims", 1))
    if value.is_last and (keep or axes == list(range(2, rank))):
        out = _reduced(rule, value.tensor(), [held_axis(value, axis) for axis in axes], keep)
        return Value(last=out) if keep else plain(out)
    return plain(_reduced(rule, value.plain(), axes, keep))


def _reduced(rule: Callable[..., Tensor], x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.shape.rank <= FEW:
        return rule(x, axes, keep)
    kept = in_few(lambda tensors, at: rule(tensors[0], at, True), [x], axes)
    return kept if keep else tf.squeeze(kept, axes)


op(*REDUCE)(_reduce)


@op("ArgMax", "ArgMin")
def _arg(node: Node) -> Value:
    value = node.value()
    axis = node.axis(0)
    x = value.plain()
    if node.attr("select_last_index", 0):
        raise node.error("it picks the last of equal elements")
    largest = node.op == "ArgMax"
    if x.dtype == tf.int64:  # of these LiteRT finds the extreme, but not where it is
        extreme = (tf.reduce_max if largest else tf.reduce_min)(x, axis, keepdims=True)
        x, largest = tf.cast(tf.equal(x, extreme), tf.int32), True
    out = (tf.argmax if largest else tf.argmin)(x, axis)
    return plain(tf.expand_dims(out, axis) if node.attr("keepdims", 1) else out)


@op("CumSum")
def _cumsum(node: Node) -> Value:
    value = node.value()
    axis = int(node.static(1, "axis").reshape(()))
    out = tf.cumsum(
        value.tensor(),
        held_axis(value, axis),
        exclusive=bool(node.attr("exclusive", 0)),
        reverse=bool(node.attr("reverse", 0)),
    )
    return same_order(value, out)
