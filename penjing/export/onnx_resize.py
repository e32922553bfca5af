"""ONNX's rules for resizing an image: sizes, source positions, interpolation weights. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from penjing.export.onnx_node import OnnxNode


def scales_and_sizes(
    node: OnnxNode[Any], shape: Sequence[int], wished: Callable[[], Sequence[int | None]]
) -> tuple[list[float], list[int]]:
    """Scale and output size of every axis of a Resize or Upsample node's tensor.

    Args:
        node: The node.
        shape: Sizes of its input; those of batch and channels do not matter.
        wished: Gives the ``sizes`` input, None where unknown.
    """
    rank = len(shape)
    if node.op == "Upsample" or node.opset < 11:
        given = node.attr("scales") if "scales" in node.attributes else node.static(1, "scales")
        factors = [float(s) for s in np.asarray(given)]
        return factors, [int(np.floor(n * s)) for n, s in zip(shape, factors, strict=True)]
    axes = [int(a) % rank for a in node.attr("axes", range(rank))]
    scales, sizes = [1.0] * rank, list(shape)
    if node.has(3):
        for axis, size in zip(axes, wished(), strict=True):
            if size is not None and axis >= 2:
                sizes[axis], scales[axis] = size, size / shape[axis]
            elif axis >= 2:
                raise node.error("its size is computed from the model's inputs")
        return scales, sizes
    for axis, factor in zip(axes, node.static(2, "scales"), strict=True):
        if axis >= 2:
            scales[axis], sizes[axis] = float(factor), int(np.floor(shape[axis] * float(factor)))
    return scales, sizes


def coordinate_rule(node: OnnxNode[Any]) -> str:
    """How output positions map to input positions."""
    return node.text("coordinate_transformation_mode", "asymmetric" if node.opset < 11 else "half_pixel")


def source_positions(rule: str, out: int, n: int, scale: float) -> np.ndarray:
    """Where each output position lies in the input (ONNX Resize, ``coordinate_transformation_mode``)."""
    at = np.arange(out, dtype=np.float64)
    if rule == "align_corners":
        return at * (n - 1) / (out - 1) if out > 1 else np.zeros_like(at)
    if rule == "asymmetric":
        return at / scale
    if rule == "pytorch_half_pixel" and out == 1:
        return np.zeros_like(at)
    if rule == "half_pixel_symmetric":
        adjustment = out / (scale * n)
        return n / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
    return (at + 0.5) / scale - 0.5


def nearest_positions(node: OnnxNode[Any], at: np.ndarray, n: int) -> np.ndarray:
    """Source positions rounded as ``nearest_mode`` says."""
    how = node.text("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    # float32 positions, as the runtimes compute them: 0.5 must not become 0.50000001
    at = at.astype(np.float32).astype(np.float64)
    picks = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }[how]
    return np.asarray(picks.clip(0, n - 1), np.int64)


def interpolation_matrix(node: OnnxNode[Any], mode: str, at: np.ndarray, n: int, scale: float) -> np.ndarray:
    """Interpolation weights, output × input."""
    antialias = bool(node.attr("antialias", 0))
    stretch = max(1.0 / scale, 1.0) if antialias else 1.0
    reach = int(np.ceil((2 if mode == "cubic" else 1) * stretch))
    a = float(node.attr("cubic_coeff_a", -0.75))
    matrix = np.zeros((len(at), n))
    for row, centre in enumerate(at):
        taps = np.arange(int(np.floor(centre)) - reach + 1, int(np.floor(centre)) + reach + 1)
        weights = _tap((taps - centre) / stretch, mode, a)
        inside = (taps >= 0) & (taps < n)
        if antialias or node.attr("exclude_outside", 0):
            weights = np.where(inside, weights, 0.0)
        total = weights.sum()
        np.add.at(matrix[row], taps.clip(0, n - 1), weights / total)
    return np.asarray(matrix, np.float32)


def _tap(distance: np.ndarray, mode: str, a: float) -> np.ndarray:
    d = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.maximum(1.0 - d, 0.0))
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1  # Keys 1981, cubic convolution
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))
