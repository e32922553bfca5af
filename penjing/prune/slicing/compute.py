"""Ops that compute and have a size or a count among their arguments: convolutions, norms, attention."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from penjing.graph import Axis
from penjing.prune.slicing.site import Site, rewrites


def _blocks(site: Site, axis: Axis, groups: int) -> int:
    """How many of ``groups`` equal consecutive blocks of the axis still have something in them.

    Raises:
        PruneError: if they do not all keep equally many positions.
    """
    if site.whole(axis):
        return groups
    owners = site.positions(axis) // (axis.size // groups)
    counts = np.bincount(owners, minlength=groups)
    counts = counts[counts > 0]
    if len(set(counts.tolist())) > 1:
        raise site.error("its groups would keep different numbers of channels")
    return len(counts)


def _groups(site: Site, position: int) -> int:
    """Number of groups as far as it is written out; 1 where it goes by the batch."""
    groups = site.arg(position, "groups", 1)
    return groups if isinstance(groups, int) else 1


@rewrites(
    "conv1d.default",
    "conv2d.default",
    "conv3d.default",
    "conv1d.padding",
    "conv2d.padding",
    "conv3d.padding",
)
def conv(site: Site) -> None:
    """The number of groups: those that still make output channels."""
    groups, weight = _groups(site, 6), site.axes(site.arg(1, "weight"))
    channels = site.axes(site.arg(0, "input"))[-len(weight) + 1]
    if isinstance(site.arg(6, "groups"), fx.Node):
        old, new = channels.size // weight[1].size, site.size(channels) // site.size(weight[1])
        site.put(6, "groups", site.scaled(site.arg(6, "groups"), old, new))
    if groups == 1:
        return
    left = _blocks(site, weight[0], groups)
    if _blocks(site, channels, groups) != left:
        raise site.error("its groups keep inputs without outputs")
    site.put(6, "groups", left)


@rewrites("convolution.default")
def convolution(site: Site) -> None:
    """As `conv`; a transposed one has its groups along dim 0 of the weight too."""
    groups = _groups(site, 8)
    if groups > 1:
        site.put(8, "groups", _blocks(site, site.axes(site.arg(1, "weight"))[0], groups))


@rewrites("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(site: Site) -> None:
    """The weight is (in, out / groups, …), so its dim 0 tells the groups."""
    groups = _groups(site, 6)
    if groups > 1:
        site.put(6, "groups", _blocks(site, site.axes(site.arg(1, "weight"))[0], groups))


@rewrites("group_norm.default", "channel_shuffle.default", "native_channel_shuffle.default")
def groups(site: Site) -> None:
    """The number of groups of channels."""
    site.put(1, "num_groups", _blocks(site, site.axes(site.arg(0, "input"))[1], site.arg(1, "num_groups")))


@rewrites("layer_norm.default", "rms_norm.default", "native_layer_norm.default")
def layer_norm(site: Site) -> None:
    """The normalised shape, written out."""
    sizes = site.arg(1, "normalized_shape")
    site.put(1, "normalized_shape", site.sizes(sizes, site.out[len(site.out) - len(sizes) :]))


@rewrites("scaled_dot_product_attention.default")
def attention(site: Site) -> None:
    """The default scale 1/√d is that of the original head dim: pruning keeps the function."""
    dim = site.axes(site.arg(0, "query"))[-1]
    if site.node.kwargs.get("scale") is None and len(site.node.args) < 7 and not site.whole(dim):
        site.node.update_kwarg("scale", 1.0 / math.sqrt(dim.size))
