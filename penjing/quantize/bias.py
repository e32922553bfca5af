"""Bias correction: the rounded weights' mean output error goes into the bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional

from penjing.quantize.graph import int_attribute, ints_attribute

_CONVS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def mean_output(
    node: ir.Node, mean: NDArray[np.float64], w: NDArray[np.floating]
) -> NDArray[np.float64] | None:
    """Mean of a linear layer's output per channel, without its bias.

    A layer without bias is linear, so its mean output over samples is its output on the mean sample: exact,
    with padding, in one call (the empirical correction of Nagel et al. 2019, section 4.2, without running the
    data through again).

    Args:
        node: Conv, Gemm or MatMul.
        mean: Mean input over the samples, ``CHW…`` for Conv, ``…K`` otherwise.
        w: The weight, or a difference of two weights, in the node's layout.

    Returns:
        One value per output channel; None for a convolution form that is not handled.
    """
    if node.op_type != "Conv":
        transposed = node.op_type == "Gemm" and bool(int_attribute(node, "transB", 0))
        mean_K = mean.reshape(-1, mean.shape[-1]).mean(axis=0)
        return np.asarray((w if transposed else w.T).astype(np.float64) @ mean_K)
    rank = w.ndim - 2
    if rank not in _CONVS or "auto_pad" in node.attributes:
        return None
    pads = ints_attribute(node, "pads", [0] * 2 * rank)
    # ONNX lists all starts, then all ends; torch wants (start, end) from the last axis.
    sides = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
    x = functional.pad(torch.from_numpy(np.ascontiguousarray(mean))[None], sides)
    out = _CONVS[rank](
        x,
        torch.from_numpy(np.ascontiguousarray(w, np.float64)),
        stride=tuple(ints_attribute(node, "strides", [1] * rank)),
        dilation=tuple(ints_attribute(node, "dilations", [1] * rank)),
        groups=int_attribute(node, "group", 1),
    )
    return np.asarray(out[0].flatten(1).mean(dim=1).numpy())
