"""Convolutions: the input's channels meet the weight's dim 1, the output's its dim 0, by groups."""

from __future__ import annotations

from penjing.graph.axes import Axis, product
from penjing.graph.rules.table import Axes, Op, Result, rule


def spatial_out(op: Op, x: Axes, weight: Axes, lead: int) -> Axes:
    """Spatial axes of the output; a pointwise convolution leaves them as they are."""
    for axis in weight[2:]:
        op.freeze(axis, "a kernel axis", "kernel")
    pointwise = all(axis.size == 1 for axis in weight[2:])
    sizes = op.shape[lead:]
    if pointwise and all(axis.size == size for axis, size in zip(x[lead:], sizes, strict=True)):
        return x[lead:]
    for axis in x[lead:]:
        op.freeze(axis, "a spatial axis that a convolution slides over", "spatial")
    return tuple(op.spatial(size) for size in sizes)


def grouped(op: Op, x: Axis, weight_in: Axis, weight_out: Axis) -> None:
    """``channels = groups · weight_in`` and ``outputs = groups · outputs per group``; the samples of a batch
    may be groups.
    """
    groups = x.size // weight_in.size
    if groups == 1:
        op.unify(x, weight_in)
        return
    outer, inner = op.split(x, groups, x.size // groups)
    op.unify(inner, weight_in)
    outer_out, _ = op.split(weight_out, groups, weight_out.size // groups)
    op.unify(outer, outer_out)


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def conv(op: Op) -> Axes:
    """x (N, C, …) with weight (O, C/g, …)."""
    x, weight, bias = (op.axes(op.args[name]) for name in ("input", "weight", "bias"))
    lead = len(x) - (len(weight) - 2)  # 2, or 1 without a batch dimension
    grouped(op, x[lead - 1], weight[1], weight[0])
    for axis in bias:
        op.unify(axis, weight[0])
    return (*x[: lead - 1], weight[0], *spatial_out(op, x, weight, lead))


@rule("aten.convolution", "aten._convolution")
def convolution(op: Op) -> Result:
    """The general form, transposed or not."""
    return conv_transpose(op) if op.args["transposed"] else conv(op)


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def conv_transpose(op: Op) -> Axes:
    """x (N, C, …) with weight (C, O/g, …)."""
    x, weight, bias = (op.axes(op.args[name]) for name in ("input", "weight", "bias"))
    lead = len(x) - (len(weight) - 2)
    groups = op.shape[lead - 1] // weight[1].size
    op.unify(x[lead - 1], weight[0])
    out = (
        weight[1]
        if groups == 1
        else product([op.split(weight[0], groups, weight[0].size // groups)[0], weight[1]])
    )
    for axis in bias:
        op.unify(axis, out)
    return (*x[: lead - 1], out, *spatial_out(op, x, weight, lead))


@rule("torchvision.deform_conv2d")
def deform_conv(op: Op) -> Axes:
    """Deformable convolution: offsets are computed for every offset group, so their channels stay."""
    x, weight, bias = (op.axes(op.args[name]) for name in ("input", "weight", "bias"))
    grouped(op, x[1], weight[1], weight[0])
    if int(op.args["offset_groups"]) > 1:
        op.freeze(x[1], "deformable convolution with several offset groups")
    for name in ("offset", "mask"):
        for axis in op.axes(op.args[name]):
            op.freeze(axis, "offsets and masks of a deformable convolution")
    for axis in bias:
        op.unify(axis, weight[0])
    return (x[0], weight[0], *spatial_out(op, x, weight, 2))
