"""Ops that move or reshape without computing: reshape, transpose, concat, split, slice, pad, tile, expand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, host_array, op

Size = int | torch.SymInt


@op("Shape")
def _shape(node: Node) -> Value:
    sizes = list(node.value().shape)
    end = node.attr("end")
    return host_array(sizes[int(node.attr("start", 0)) : None if end is None else int(end)])


@op("Size")
def _size(node: Node) -> Value:
    count: Any = 1
    for size in node.value().shape:
        count = count * size
    return host_array(count)


@op("Reshape")
def _reshape(node: Node) -> Value:
    x, sizes = node.x(0), node.ints("shape", 1) or []
    if not node.attr("allowzero", 0):
        sizes = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@op("Flatten")
def _flatten(node: Node) -> Value:
    x, axis = node.x(), node.axis(1)
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x[:, None]
    front: Any = 1
    for size in x.shape[:axis]:
        front = front * size
    return x.reshape(front, -1)


@op("Transpose")
def _transpose(node: Node) -> Value:
    x = node.x()
    return x.permute([int(p) for p in node.attr("perm", range(x.ndim - 1, -1, -1))])


@op("Concat")
def _concat(node: Node) -> Value:
    return torch.cat([node.x(i) for i in range(len(node.inputs))], int(node.attr("axis", 0)))


@op("Split")
def _split(node: Node) -> list[Value]:
    x, axis, sizes = node.x(), node.axis(0), node.ints("split", 1)
    if sizes is None:
        count = int(node.attr("num_outputs", node.num_outputs))
        return list(torch.split(x, -(-x.shape[axis] // count), axis))
    return list(torch.split(x, sizes, axis))


@op("Slice")
def _slice(node: Node) -> Value:
    x = node.x()
    starts, ends = node.ints("starts", 1) or [], node.ints("ends", 2) or []
    axes, steps = node.ints("axes", 3) or list(range(len(starts))), node.ints("steps", 4)
    for i, (start, end, axis) in enumerate(zip(starts, ends, axes, strict=True)):
        x = _sliced(x, axis % x.ndim, start, end, steps[i] if steps else 1)
    return x


def _sliced(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    if step > 0:
        if start == 0 and step == 1 and isinstance(end, int) and end >= 2**31 - 1:
            return x
        return x[(slice(None),) * axis + (slice(start, end, step),)]
    size = x.shape[axis]
    picked = range(size)[slice(start, None if end < -size else end, step)]
    if picked == range(size)[::-1]:
        return x.flip(axis)
    return x.index_select(axis, torch.tensor(list(picked), device=x.device))


@op("Squeeze")
def _squeeze(node: Node) -> Value:
    x, axes = node.x(), node.ints("axes", 1)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@op("Unsqueeze")
def _unsqueeze(node: Node) -> Value:
    x, axes = node.x(), node.ints("axes", 1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@op("Expand")
def _expand(node: Node) -> Value:
    x, sizes = node.x(), node.ints("shape", 1) or []
    rank = max(x.ndim, len(sizes))
    own = [1] * (rank - x.ndim) + list(x.shape)
    wide = [1] * (rank - len(sizes)) + sizes
    return x.expand([n if isinstance(w, int) and w == 1 else w for n, w in zip(own, wide, strict=True)])


@op("Tile")
def _tile(node: Node) -> Value:
    return node.x().repeat(node.ints("repeats", 1) or [])


@op("Pad")
def _pad(node: Node) -> Value:
    x = node.x()
    given = node.ints("pads", 1) or []
    axes = [a % x.ndim for a in (node.ints("axes", 3) or range(x.ndim))]
    pads = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        pads[axis] = (given[i], given[i + len(axes)])
    mode = node.text("mode", "constant")
    if mode == "constant":
        return F.pad(x, _torch_order(pads), value=float(node.number("value", 2, 0.0)))
    if mode not in ("reflect", "edge", "wrap"):
        raise node.error(f"the padding mode {mode!r}")
    # torch mirrors the last dimensions only, and not for every rank; positions do for all
    for axis, (before, after) in enumerate(pads):
        if before or after:
            x = x.index_select(axis, _padded(x, axis, before, after, mode))
    return x


def _torch_order(pads: list[tuple[int, int]]) -> list[int]:
    """Pairs from the last dimension to the first one that is padded at all."""
    first = next((i for i, pair in enumerate(pads) if pair != (0, 0)), len(pads) - 1)
    return [n for pair in reversed(pads[first:]) for n in pair]


def _padded(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    at = np.arange(x.shape[axis])[max(-before, 0) : x.shape[axis] - max(-after, 0)]
    at = np.pad(at, (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]
    return torch.tensor(at, device=x.device)


@op("DepthToSpace")
def _depth_to_space(node: Node) -> Value:
    x, block = node.x(), int(node.attr("blocksize"))
    if node.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    split = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(n, c // block**2, h * block, w * block)


@op("SpaceToDepth")
def _space_to_depth(node: Node) -> Value:
    x, block = node.x(), int(node.attr("blocksize"))
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(n, c * block**2, h // block, w // block)
