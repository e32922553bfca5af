"""Ops that take a part of a dim, or move its positions about: slice, split, index, roll, pad."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import fx

from penjing.prune.ranges import Positions
from penjing.prune.slicing.site import Site, rewrites

aten = torch.ops.aten


@rewrites(
    "split.Tensor",
    "split.sizes",
    "split_with_sizes.default",
    "chunk.default",
    "tensor_split.sections",
    "tensor_split.indices",
    "unsafe_split.Tensor",
    "unsafe_chunk.default",
)
def split(site: Site) -> None:
    """Pieces are what is kept of each; equal pieces may become unequal, so the sizes are written out."""
    value, dim = site.arg(0, "self"), site.arg(2, "dim", 0)
    at = site.dim(value, dim)
    if site.whole(site.axes(value)[at]):
        return
    site.become(aten.split_with_sizes.default, value, [site.size(axes[at]) for axes in site.outs], at)


@rewrites("slice.Tensor")
def slice_(site: Site) -> None:
    """A run of kept positions stays a slice; anything else becomes a selection."""
    value, dim = site.arg(0, "self"), site.dim(site.arg(0, "self"), site.arg(1, "dim", 0))
    axis = site.axes(value)[dim]
    if site.whole(axis):
        return
    step = site.arg(4, "step", 1)
    first, last, _ = slice(site.arg(2, "start"), site.arg(3, "end"), step).indices(axis.size)
    source = np.arange(first, last, step, dtype=np.int64)
    _take(site, value, dim, source[site.positions(site.out[dim])])


@rewrites("narrow.default")
def narrow(site: Site) -> None:
    """A slice by start and length."""
    value, dim = site.arg(0, "self"), site.dim(site.arg(0, "self"), site.arg(1, "dim"))
    if not site.whole(site.axes(value)[dim]):
        start = site.arg(2, "start") % site.axes(value)[dim].size
        source = np.arange(start, start + site.arg(3, "length"), dtype=np.int64)
        _take(site, value, dim, source[site.positions(site.out[dim])])


def _take(site: Site, value: Any, dim: int, source: Positions) -> None:
    new = site.moved(site.axes(value)[dim], source)
    if len(new) and (np.diff(new) == 1).all():
        site.become(aten.slice.Tensor, value, dim, int(new[0]), int(new[-1]) + 1)
    else:
        site.gather(value, dim, new)


@rewrites("select.int")
def select(site: Site) -> None:
    """One position."""
    value, dim = site.arg(0, "self"), site.dim(site.arg(0, "self"), site.arg(1, "dim"))
    axis = site.axes(value)[dim]
    if not site.whole(axis):
        old = np.array([site.arg(2, "index") % axis.size], dtype=np.int64)
        site.put(2, "index", int(site.moved(axis, old)[0]))


@rewrites("index.Tensor")
def index(site: Site) -> None:
    """Constant indices into a pruned dim are rewritten; the indexing dims themselves stay where they are."""
    value, indices = site.arg(0, "self"), list(site.arg(1, "indices"))
    axes = site.axes(value)
    used = [d for d, node in enumerate(indices) if isinstance(node, fx.Node)]
    if all(site.whole(axes[d]) for d in used):
        return
    if len(used) != 1:
        raise site.error("several index tensors over a pruned dim")
    dim = used[0]
    constant = site.constant(indices[dim])
    if constant.dtype == torch.bool:
        constant = constant.nonzero().squeeze(1)
    old = constant.cpu().numpy().astype(np.int64) % axes[dim].size
    for d in range(old.ndim):
        old = old.take(site.positions(site.out[dim + d]), axis=d)
    new = site.moved(axes[dim], old.reshape(-1)).reshape(old.shape)
    indices[dim] = site.index_tensor(indices[dim], torch.from_numpy(new))
    site.put(1, "indices", indices)


@rewrites("index_select.default")
def index_select(site: Site) -> None:
    """Constant indices into a pruned dim."""
    value, dim = site.arg(0, "self"), site.dim(site.arg(0, "self"), site.arg(1, "dim"))
    axis = site.axes(value)[dim]
    if not site.whole(axis):
        old = site.constant(site.arg(2, "index")).cpu().numpy().astype(np.int64) % axis.size
        new = site.moved(axis, old[site.positions(site.out[dim])])
        site.put(2, "index", site.index_tensor(site.arg(2, "index"), torch.from_numpy(new)))


@rewrites("roll.default")
def roll(site: Site) -> None:
    """The positions that wrap around are those kept of the ones that did."""
    value, shifts = site.arg(0, "self"), list(site.arg(1, "shifts"))
    dims = list(site.arg(2, "dims", ()))
    axes = site.axes(value)
    if not dims:
        if any(not site.whole(axis) for axis in axes):
            raise site.error("roll over all dims at once")
        return
    for i, dim in enumerate(dims):
        axis = axes[site.dim(value, dim)]
        if not site.whole(axis):
            shifts[i] = int((site.positions(axis) >= axis.size - shifts[i] % axis.size).sum())
    site.put(1, "shifts", shifts)


@rewrites("pad.default", "constant_pad_nd.default")
def pad(site: Site) -> None:
    """Padded positions that go are padded less."""
    value, widths = site.arg(0, "self"), list(site.arg(1, "pad"))
    axes = site.axes(value)
    for i in range(len(widths) // 2):
        dim = len(axes) - 1 - i
        if site.whole(site.out[dim]):
            continue
        left, right = widths[2 * i], widths[2 * i + 1]
        if left < 0 or right < 0 or site.arg(2, "mode", "constant") not in ("constant", 0, 0.0):
            raise site.error("padding other than by a constant along a pruned dim")
        kept = site.positions(site.out[dim])
        widths[2 * i] = int((kept < left).sum())
        widths[2 * i + 1] = int((kept >= left + axes[dim].size).sum())
    site.put(1, "pad", widths)


@rewrites("slice_scatter.default")
def slice_scatter(site: Site) -> None:
    """Writing a run of positions: what is kept must still be a run."""
    value, dim = site.arg(0, "self"), site.dim(site.arg(0, "self"), site.arg(2, "dim", 0))
    axis = site.axes(value)[dim]
    if site.whole(axis):
        return
    end = site.arg(4, "end")
    first, last, step = slice(
        site.arg(3, "start"), None if end is None else min(end, sys.maxsize), site.arg(5, "step", 1)
    ).indices(axis.size)
    if step != 1:
        raise site.error("a strided write along a pruned dim")
    kept = site.positions(axis)
    start, stop = int((kept < first).sum()), int((kept < last).sum())
    site.become(aten.slice_scatter.default, value, site.arg(1, "src"), dim, start, stop)
