"""Normalisations: their parameters follow the axis; statistics that run over it are marked."""

from __future__ import annotations

from penjing.graph.rules.table import Axes, Op, rule


@rule(
    "aten.batch_norm",
    "aten.instance_norm",
    "aten._native_batch_norm_legit_no_training",
    "aten.native_batch_norm",
)
def batch_norm(op: Op) -> Axes:
    """Weight, bias and running statistics follow dim 1; batch statistics run over the rest."""
    x = op.axes(op.args["input"])
    channel = x[1] if len(x) > 1 else x[0]
    for name in ("weight", "bias", "running_mean", "running_var"):
        for axis in op.axes(op.args.get(name)):
            op.unify(channel, axis)
    if op.args.get("training") or op.args.get("use_input_stats"):
        for dim, axis in enumerate(x):
            if dim != 1:
                op.mark(axis, "normalised")
    return x


@rule("aten.layer_norm", "aten.rms_norm", "aten.native_layer_norm", "aten._fused_rms_norm")
def layer_norm(op: Op) -> Axes:
    """Statistics over the last dims, whose weight and bias follow them."""
    x = op.axes(op.args["input"])
    normal = x[len(x) - len(op.args["normalized_shape"]) :]
    for axis in normal:
        op.mark(axis, "normalised")
    for name in ("weight", "bias"):
        op.broadcast(normal, op.axes(op.args.get(name)))
    return x


@rule("aten.group_norm")
def group_norm(op: Op) -> Axes:
    """Channels are groups · members; statistics run over the members, so each group keeps as many."""
    x = op.axes(op.args["input"])
    groups = int(op.args["num_groups"])
    _, members = op.split(x[1], groups, x[1].size // groups)
    op.mark(members, "normalised")
    for axis in x[2:]:
        op.mark(axis, "normalised")
    for name in ("weight", "bias"):
        for axis in op.axes(op.args[name]):
            op.unify(x[1], axis)
    return op.axes(op.args["input"])


@rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(op: Op) -> list[Axes]:
    """A weight of direction v and length g (Salimans & Kingma 2016), which stays as v gets narrower;
    g has v's axis along ``dim``.
    """
    v, g = (op.axes(op.args[name]) for name in ("v", "g"))
    op.broadcast(v, g)
    for dim, axis in enumerate(v):
        if not g or g[dim].size == 1:
            op.mark(axis, "normalised")
    return [v, g][: len(op.outputs)]


@rule("aten.renorm")
def renorm(op: Op) -> Axes:
    """The norm of each slice along ``dim`` is bounded; it runs over the other dims."""
    x = op.axes(op.args["self"])
    for dim, axis in enumerate(x):
        if dim != op.dim(op.args["dim"], len(x)):
            op.mark(axis, "normalised")
    return x


@rule(
    "aten.softmax",
    "aten.log_softmax",
    "aten.special_softmax",
    "aten.special_log_softmax",
    "aten._softmax",
    "aten._log_softmax",
)
def softmax(op: Op) -> Axes:
    """Restricted to the kept slots."""
    x = op.axes(op.args["self"])
    if x:
        op.mark(x[op.dim(op.args["dim"], len(x))], "softmax")
    return x


@rule("aten.cumsum", "aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin")
def along(op: Op) -> list[Axes]:
    """A running total over a dimension depends on the order and number of its slots."""
    x = op.axes(op.args["self"])
    dim = op.dim(op.args["dim"], len(x))
    op.freeze(x[dim], "a running total depends on every slot")
    return [x] * len(op.outputs)


@rule("aten.diff", "aten.trapezoid", "aten.trapz", "aten.cumulative_trapezoid")
def neighbours(op: Op) -> Axes:
    """Differences or sums of neighbours along one dimension; the others pass."""
    x = list(op.tensors()[0])
    dim = op.dim(op.args.get("dim", -1), len(x))
    for other in op.tensors():
        op.freeze(other[dim if len(other) == len(x) else -1], "neighbouring slots are taken together")
        for d, axis in enumerate(other):
            if len(other) == len(x) and d != dim and axis.size == x[d].size:
                op.unify(x[d], axis)
    rest = [*x[:dim], *x[dim + 1 :]]
    if len(op.shape) == len(x):
        rest.insert(dim, op.fixed(op.shape[dim], "neighbouring slots are taken together"))
    return tuple(rest)
