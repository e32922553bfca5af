"""From ranges and statistics to the numbers of each 8-bit layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.bias import mean_output
from penjing.quantize.config import QuantizeConfig
from penjing.quantize.graph import bias_of, int_attribute, name_of, weight_axis, weight_of
from penjing.quantize.scheme import ActivationParams, decibels, weight_top
from penjing.quantize.weights import (
    Guard,
    QuantizedWeight,
    as_rows,
    from_rows,
    pad_channels,
    quantize_weight,
    round_rows,
)

_BIAS_MAX = 2.0**30


@dataclass(frozen=True)
class EncodedLayer:
    """One layer's numbers.

    Attributes:
        weight: int8 weight and scales.
        bias_O: int32 bias in steps of input scale × weight scale, or None.
        bias_scale_O: Those steps, float32.
        weight_db: Signal to error of the weight.
    """

    weight: QuantizedWeight
    bias_O: NDArray[np.int32] | None
    bias_scale_O: NDArray[np.float32]
    weight_db: float


def encode_layer(
    node: ir.Node,
    params: ActivationParams,
    *,
    config: QuantizeConfig,
    guard: Guard,
    mean: NDArray[np.float64] | None = None,
    moments: NDArray[np.float64] | None = None,
    scale_O: NDArray[np.float32] | None = None,
) -> EncodedLayer:
    """Round a layer's weight and bias for an input stored with ``params``.

    Args:
        node: Conv, Gemm or MatMul of the prepared graph.
        params: Scale and zero point of its input.
        config: Uses ``weights``, ``weight_bits``, ``rounding`` and ``bias_correction``.
        guard: What protects 16-bit sums.
        mean: Mean input over the samples, for bias correction; None for none.
        moments: Second moments of the input patches, for second-order rounding; None rounds to nearest.
        scale_O: The weight's steps where they were learned.
    """
    w, axis, bias_O = weight_of(node), weight_axis(node), bias_of(node)
    guard = guard_of(node, guard)
    lone = lone_channels(node, guard)
    held = pad_channels(w, lone)
    top = weight_top(config.weight_bits)
    least_O = None if bias_O is None else np.abs(bias_O.astype(np.float64)) / (params.scale * _BIAS_MAX)
    if scale_O is not None:
        scale_O = scale_O if least_O is None else np.maximum(scale_O, least_O.astype(np.float32))
        levels_OK = round_rows(as_rows(held, axis), scale_O, guard, top)
        weight = QuantizedWeight(from_rows(levels_OK, held.shape, axis), scale_O, axis)
    else:
        weight = quantize_weight(held, axis, method=config.weights, guard=guard, least_O=least_O, top=top)
    if moments is not None:
        from penjing.quantize.rounding import second_order

        refine = config.rounding == "descent"
        moments = _pad_moments(moments, w.shape[1], lone)
        weight = second_order(held, weight, moments, guard=guard, top=top, refine=refine)
    weight = weight.without_last(lone)
    error = weight.dequantized() - w
    if config.bias_correction and mean is not None and node.op_type != "MatMul":
        shift_O = mean_output(node, mean, error)
        if shift_O is not None:
            bias_O = (0.0 if bias_O is None else bias_O) - shift_O.astype(np.float32)
    steps_O = (np.float64(params.scale) * weight.scale_O.astype(np.float64)).astype(np.float32)
    encoded = None
    if bias_O is not None:
        levels_O = np.rint(bias_O.astype(np.float64) / steps_O)
        encoded = np.clip(levels_O, -(2.0**31), 2.0**31 - 1).astype(np.int32)
    db = decibels(
        float(np.square(w, dtype=np.float64).sum()), float(np.square(error, dtype=np.float64).sum())
    )
    return EncodedLayer(weight, encoded, steps_O, db)


def lone_channels(node: ir.Node, guard: Guard) -> int:
    """Channels of zeros that let no pair of a convolution's 16-bit sums reach across kernel positions.

    The pairs of an odd number of channels would be others once the file has more of them, for kernels that
    want even numbers; so they are always those of the next even number, which the file then has
    (`penjing.quantize.channels.make_even`).
    """
    if guard != "pairs" or node.op_type != "Conv" or int_attribute(node, "group", 1) != 1:
        return 0
    _, channels, *kernel = weight_of(node).shape
    return channels % 2 if np.prod(kernel) > 1 else 0


def _pad_moments(moments_GKK: NDArray[np.float64], channels: int, extra: int) -> NDArray[np.float64]:
    """Of inputs with ``extra`` channels that are always zero, in the order kernel positions, channels."""
    if not extra:
        return moments_GKK
    groups, positions = len(moments_GKK), moments_GKK.shape[1] // channels
    split = moments_GKK.reshape(groups, positions, channels, positions, channels)
    size = positions * (channels + extra)
    return np.pad(split, [(0, 0), (0, 0), (0, extra), (0, 0), (0, extra)]).reshape(groups, size, size)


def guard_of(node: ir.Node, guard: Guard) -> Guard:
    """The guard a layer needs: depthwise kernels do not add in 16 bits."""
    group = int_attribute(node, "group", 1)
    depthwise = node.op_type == "Conv" and group > 1 and weight_of(node).shape[:2] == (group, 1)
    return "off" if depthwise else guard


def encode_layers(
    graph: ir.Graph,
    layers: Mapping[str, str],
    params: Mapping[str, ActivationParams],
    *,
    config: QuantizeConfig,
    guard: Guard,
    means: Mapping[str, NDArray[np.float64]],
    moments: Mapping[str, NDArray[np.float64]],
    scales: Mapping[str, NDArray[np.float32]],
) -> dict[str, EncodedLayer]:
    """All layers of a placement, by output name; ``params`` and ``means`` are by input tensor, ``scales``
    (learned weight steps) by output name."""
    encoded: dict[str, EncodedLayer] = {}
    for node in graph:
        out = name_of(node.outputs[0]) if node.outputs else ""
        if out not in layers:
            continue
        source = node.inputs[0]
        assert source is not None
        name = name_of(source)
        encoded[out] = encode_layer(
            node,
            params[name],
            config=config,
            guard=guard,
            mean=means.get(name),
            moments=moments.get(out),
            scale_O=scales.get(out),
        )
    return encoded
