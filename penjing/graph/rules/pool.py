"""Pooling, resampling, patches: the last dims are spatial, channels pass through."""

from __future__ import annotations

from penjing.graph.axes import Axis, product
from penjing.graph.rules.table import Axes, Op, rule

POOLS = {
    1: """avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d
    upsample_linear1d _upsample_nearest_exact1d max_pool1d_with_indices reflection_pad1d replication_pad1d""",
    2: """avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d reflection_pad2d replication_pad2d
    _adaptive_avg_pool2d""",
    3: """avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d max_pool3d_with_indices
    upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d
    _adaptive_avg_pool3d""",
}


def _pool(rank: int) -> None:
    @rule(*(f"aten.{name}" for name in POOLS[rank].split()))
    def pool(op: Op) -> list[Axes]:
        x = op.tensors()[0]
        for axis in x[-rank:]:
            op.freeze(axis, "a spatial axis that a window slides over", "spatial")
        return [(*x[:-rank], *(op.spatial(size) for size in shape[-rank:])) for shape in op.outputs]


for _rank in POOLS:
    _pool(_rank)


def _unpool(rank: int) -> None:
    @rule(f"aten.max_unpool{rank}d")
    def unpool(op: Op) -> Axes:
        """Values go back to where they were the largest: each channel has places of its own."""
        x, places = op.tensors()[:2]
        for value, place in zip(x, places, strict=True):
            op.unify(value, place)
        for axis in x[-rank:]:
            op.freeze(axis, "positions of maxima", "spatial")
        return (*x[:-rank], *(op.spatial(size) for size in op.shape[-rank:]))


for _rank in (2, 3):
    _unpool(_rank)


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sample(op: Op) -> Axes:
    """Samples (N, C, …) at the places of a grid (N, …): N may hold heads as well."""
    x, grid = op.tensors()[:2]
    op.unify(x[0], grid[0])
    for axis in (*x[2:], *grid[1:]):
        op.freeze(axis, "positions to sample at", "spatial")
    return (x[0], x[1], *(op.spatial(size) for size in op.shape[2:]))


@rule("aten.affine_grid_generator")
def affine_grid(op: Op) -> list[Axes]:
    """Grid positions."""
    return op.give_up("positions to sample at", "spatial")


@rule("torchvision.roi_align", "torchvision.roi_pool")
def roi_align(op: Op) -> list[Axes]:
    """Regions cut out of a feature map: channels pass."""
    x, rois = op.tensors()[:2]
    for axis in (*x[:1], *x[2:], *rois):
        op.freeze(axis, "regions of interest", "spatial")
    return [
        (op.spatial(shape[0]), x[1], *(op.spatial(size) for size in shape[2:]))
        if len(shape) == 4
        else tuple(op.spatial(size) for size in shape)
        for shape in op.outputs
    ]


@rule("aten.pixel_shuffle")
def pixel_shuffle(op: Op) -> Axes:
    """(C·r², H, W) to (C, H·r, W·r): whole blocks of r² channels."""
    x = op.axes(op.args["self"])
    r = int(op.args["upscale_factor"])
    channels, block = op.split(x[-3], x[-3].size // (r * r), r * r)
    op.freeze(block, "the r² channels that become one channel's pixels")
    return (*x[:-3], channels, *(op.spatial(size) for size in op.shape[-2:]))


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(op: Op) -> Axes:
    """(C, H·r, W·r) to (C·r², H, W)."""
    x = op.axes(op.args["self"])
    r = int(op.args["downscale_factor"])
    block = op.fixed(r * r, "pixels that become channels")
    return (*x[:-3], product([x[-3], block]), *(op.spatial(size) for size in op.shape[-2:]))


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(op: Op) -> Axes:
    """Groups · channels become channels · groups."""
    x = list(op.axes(op.args["self"]))
    groups = int(op.args["groups"])
    outer, inner = op.split(x[1], groups, x[1].size // groups)
    x[1] = product([inner, outer])
    return tuple(x)


@rule("aten.im2col")
def im2col(op: Op) -> Axes:
    """(C, H, W) to (C·kh·kw, L)."""
    x = op.axes(op.args["self"])
    for axis in x[-2:]:
        op.freeze(axis, "a spatial axis that a window slides over", "spatial")
    kernel: list[Axis] = [op.fixed(int(size), "a kernel axis", "kernel") for size in op.args["kernel_size"]]
    return (*x[:-3], product([x[-3], *kernel]), op.spatial(op.shape[-1]))


@rule("aten.col2im")
def col2im(op: Op) -> Axes:
    """(C·kh·kw, L) to (C, H, W)."""
    x = op.axes(op.args["self"])
    window = 1
    for size in op.args["kernel_size"]:
        window *= int(size)
    channels, kernel = op.split(x[-2], x[-2].size // window, window)
    op.freeze(kernel, "a kernel axis", "kernel")
    op.freeze(x[-1], "positions of sliding windows", "spatial")
    return (*x[:-2], channels, *(op.spatial(size) for size in op.shape[-2:]))


@rule("aten.unfold", "aten.unfold_copy")
def unfold(op: Op) -> Axes:
    """Windows along a dimension become a dimension of their own at the end."""
    x = list(op.axes(op.args["self"]))
    dim = op.dim(op.args["dimension"], len(x))
    op.freeze(x[dim], "an axis that a window slides over", "spatial")
    x[dim] = op.spatial(op.shape[dim])
    return (*x, op.spatial(op.shape[-1]))
