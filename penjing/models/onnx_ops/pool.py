"""Pooling, in one, two or three dimensions, with ONNX's padding, ceiling and counting rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.export.onnx_node import Window
from penjing.models.onnx_ops.conv import pad_spatial
from penjing.models.onnx_ops.node import Node, Value, array_tensor, op

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _window(node: Node, x: Tensor) -> Window:
    window = Window(node, x.shape[2:])
    if len(window.kernel) not in _MAX:
        raise node.error(f"it has {len(window.kernel)} spatial dimensions")
    return window


def _native_padding(window: Window) -> list[int] | None:
    """The padding that torch itself puts, which it allows up to half a window; None for others."""
    half = all(2 * b <= k for (b, _), k in zip(window.pads, window.kernel, strict=True))
    return [b for b, _ in window.pads] if half and all(b == a for b, a in window.pads) else None


@op("MaxPool")
def _max_pool(node: Node) -> Value:
    if node.num_outputs > 1:
        raise node.error("the indices of the maxima are used")
    x = node.x()
    window, padding, ceil = _window(node, x), [0] * (x.ndim - 2), False
    native = _native_padding(window)
    if native is not None and x.is_floating_point():
        padding, ceil = native, bool(node.attr("ceil_mode", 0))
    else:
        lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x = pad_spatial(x, window.all_pads, lowest)
    pool = _MAX[len(window.kernel)]
    result: Tensor = pool(x, window.kernel, window.strides, padding, window.dilations, ceil_mode=ceil)
    return result


@op("AveragePool")
def _average_pool(node: Node) -> Value:
    x = node.x()
    window, count_pads = _window(node, x), bool(node.attr("count_include_pad", 0))
    if set(window.dilations) != {1}:
        raise node.error("its window is dilated")
    pool, native = _AVERAGE[len(window.kernel)], _native_padding(window)
    if native is not None:
        ceil = bool(node.attr("ceil_mode", 0))
        pooled: Tensor = pool(x, window.kernel, window.strides, native, ceil, count_pads)
        return pooled
    out: Tensor = pool(pad_spatial(x, window.all_pads), window.kernel, window.strides)
    share = window.counted(count_pads)
    return out if share is None else out * array_tensor(share).to(out)


@op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Value:
    x = node.x()
    axes = list(range(2, x.ndim))
    return x.mean(axes, keepdim=True) if node.op == "GlobalAveragePool" else x.amax(axes, keepdim=True)


@op("LpPool")
def _lp_pool(node: Node) -> Value:
    x, p = node.x(), float(node.attr("p", 2))
    window, size = _window(node, x), 1
    for k in window.kernel:
        size *= k
    x = pad_spatial(x.abs().pow(p), window.all_pads)
    pooled: Tensor = _AVERAGE[len(window.kernel)](x, window.kernel, window.strides)
    return (pooled * size).pow(1.0 / p)
