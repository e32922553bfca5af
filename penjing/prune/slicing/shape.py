"""Ops with sizes written into them: view, expand, repeat, factories."""

from __future__ import annotations

import torch

from penjing.prune.slicing.site import Site, rewrites


@rewrites("view.default", "reshape.default", "_unsafe_view.default", "expand.default", "broadcast_to.default")
def shape(site: Site) -> None:
    """The written shape becomes the kept sizes of the output."""
    site.put(1, "size", site.sizes(site.arg(1, "size"), site.out))


@rewrites("unflatten.int")
def unflatten(site: Site) -> None:
    """The sizes of the dims that come out of one."""
    dim, sizes = site.dim(site.arg(0, "self"), site.arg(1, "dim")), site.arg(2, "sizes")
    site.put(2, "sizes", site.sizes(sizes, site.out[dim : dim + len(sizes)]))


@rewrites("repeat.default", "tile.default")
def repeat(site: Site) -> None:
    """The number of copies, when copies are what was pruned."""
    copies = list(site.arg(1, "repeats", site.arg(1, "dims")))
    axes = site.axes(site.arg(0, "self"))
    lead = len(site.out) - len(axes)
    fill = [1] * (len(site.out) - len(copies)) + copies
    for i, axis in enumerate(site.out):
        if site.whole(axis):
            continue
        size = site.size(axes[i - lead]) if i >= lead else 1
        fill[i] = _copies(site, site.size(axis), size)
    site.put(1, "repeats", fill)


@rewrites("repeat_interleave.self_int")
def repeat_interleave(site: Site) -> None:
    """As for repeat, along one dim; the optional output size follows."""
    value, dim = site.arg(0, "self"), site.arg(2, "dim")
    if dim is None or site.whole(site.out[site.dim(value, dim)]):
        return
    at = site.dim(value, dim)
    size = site.size(site.out[at])
    site.put(1, "repeats", _copies(site, size, site.size(site.axes(value)[at])))
    if site.node.kwargs.get("output_size") is not None:
        site.node.update_kwarg("output_size", size)


def _copies(site: Site, out: int, size: int) -> int:
    if out % size:
        raise site.error(f"{out} positions are no multiple of {size}")
    return out // size


@rewrites(
    "zeros.default",
    "ones.default",
    "full.default",
    "empty.memory_format",
    "rand.default",
    "randn.default",
)
def factory(site: Site) -> None:
    """Tensors made from nothing."""
    site.put(0, "size", site.sizes(site.arg(0, "size"), site.out))


@rewrites("new_zeros.default", "new_ones.default", "new_full.default", "new_empty.default")
def new_factory(site: Site) -> None:
    """Tensors made like another."""
    site.put(1, "size", site.sizes(site.arg(1, "size"), site.out))


@rewrites("arange.default", "arange.start", "arange.start_step", "linspace.default", "eye.default", "eye.m")
def sequence(site: Site) -> None:
    """Positions that are counted rather than learned: the kept ones become a constant."""
    made = site.constant(site.node)
    for dim, axis in enumerate(site.out):
        made = made.index_select(dim, torch.from_numpy(site.positions(axis)).to(made.device))
    site.become(torch.ops.aten.clone.default, site.tensor(made))
