"""Even out channel ranges: divide a channel where it is made, multiply where it is read; the function stays.

One scale serves all channels of an 8-bit tensor, so a channel of small range is stored coarsely. Between a
layer that makes a channel and the layers that read it, only ops that commute with a positive factor may stand
(ReLU, pooling, residual adds…); then the factor is free. This is cross-layer equalization (Nagel et al. 2019,
section 4.1) and, with a LayerNorm as the maker, SmoothQuant (Xiao et al. 2023), as one case: a *region* of
tensors that must share their factors. How far to go is decided per region by the predicted output noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.calibrate import require_finite, stream
from penjing.quantize.feeds import Feeds
from penjing.quantize.fold import scale_output
from penjing.quantize.graph import Classes, constant, int_attribute, name_of, set_initializer, weight_of
from penjing.quantize.input_noise import InputWeights, total_noise
from penjing.quantize.place import Placement
from penjing.quantize.smooth import insert, smoothable, worthwhile

_COMMUTE = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Clip"})
_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MOST = 16.0
# A channel that calibration showed weakly may fire on other samples: if it was grown, it saturates then.
_MOST_GROWTH = 4.0
_SAMPLES = 32


@dataclass
class Region:
    """Tensors whose channels share their factors.

    Attributes:
        tensors: Their names.
        makers: Nodes whose constants make the channels.
        readers: Layers that read the channels as data.
    """

    tensors: set[str] = field(default_factory=set)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)


def equalize(model: ir.Model, placement: Placement, feeds: Feeds, *, memory_mb: int) -> int:
    """Change the model's constants in place; gives the number of regions that were changed.

    Args:
        model: A prepared fp32 model.
        placement: Which tensors will be 8-bit.
        feeds: Calibration data; 32 samples are used.
        memory_mb: See `stream`.
    """
    regions = find_regions(model.graph, placement)
    absmax: dict[str, NDArray[np.float64]] = {}
    power: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    axes = {name: _channel_axis(r) for r in regions for name in r.tensors if name in placement.roots}
    alone = {n: r for n, r in smoothable(model.graph, placement).items() if n not in axes}
    axes |= dict.fromkeys(alone, -1)

    def visit(name: str, x: NDArray[Any]) -> None:
        rows_RC = np.moveaxis(x, axes[name], -1).reshape(-1, x.shape[axes[name]])
        largest_C = np.abs(rows_RC).max(axis=0).astype(np.float64)
        require_finite(name, largest_C)
        square_C = np.einsum("rc,rc->c", rows_RC, rows_RC, dtype=np.float64)
        absmax[name] = np.maximum(absmax[name], largest_C) if name in absmax else largest_C
        power[name] = power[name] + square_C if name in power else square_C
        counts[name] = counts.get(name, 0) + len(rows_RC)

    if axes:
        stream(model, feeds, axes, visit, memory_mb=memory_mb, limit=_SAMPLES)
    changed = 0
    for region in regions:
        seen = [name for name in region.tensors if name in axes]
        if not seen or len({len(absmax[name]) for name in seen}) > 1:
            continue
        range_C = np.max([absmax[name] for name in seen], axis=0)
        power_C = np.mean([power[name] / counts[name] for name in seen], axis=0)
        chosen = choose_factors(region.readers, range_C, power_C)
        if chosen.changes:
            _apply(model.graph, region, chosen.factor_C)
            changed += 1
    for name, readers in alone.items():
        changed += _smooth(model.graph, readers, absmax[name], power[name] / counts[name])
    return changed


def _smooth(
    graph: ir.Graph, readers: list[ir.Node], range_C: NDArray[np.float64], power_C: NDArray[np.float64]
) -> bool:
    """Multiply a layer's input where that is worth it; gives whether it was."""
    chosen = choose_factors(readers, range_C, power_C)
    if not chosen.changes or not worthwhile(readers, chosen.noise, chosen.before):
        return False
    _apply(graph, Region(readers=readers), chosen.factor_C)
    insert(graph, readers, chosen.factor_C)
    return True


def find_regions(graph: ir.Graph, placement: Placement) -> list[Region]:
    """The regions whose makers and readers all take a factor, in graph order."""
    classes = Classes[str]()
    for node in graph:
        if _commutes(node):
            data = [v for v in node.inputs[: 2 if node.op_type == "Add" else 1] if v is not None]
            for source in data:
                classes.join(name_of(source), name_of(node.outputs[0]))
    regions: dict[str, Region] = {}
    frozen = {classes.root(name_of(v)) for v in [*graph.inputs, *graph.outputs]}
    for node in graph:
        commutes = _commutes(node)
        for position, value in enumerate(node.inputs):
            if value is None or value.is_initializer():
                continue
            key = classes.root(name_of(value))
            region = regions.setdefault(key, Region())
            region.tensors.add(name_of(value))
            if commutes:
                continue
            if position == 0 and name_of(node.outputs[0]) in placement.layers:
                region.readers.append(node)
            else:
                frozen.add(key)
        for value in node.outputs:
            key = classes.root(name_of(value))
            region = regions.setdefault(key, Region())
            region.tensors.add(name_of(value))
            if _makes(node) and value is node.outputs[0]:
                region.makers.append(node)
            elif not commutes:
                frozen.add(key)
    return [r for key, r in regions.items() if key not in frozen and r.makers and r.readers and _one_axis(r)]


@dataclass(frozen=True)
class Factors:
    """What each channel is divided by where it is made.

    Attributes:
        factor_C: The factors.
        noise: What rounding is predicted to add with them, see `penjing.quantize.input_noise`.
        before: The same with factors of one.
    """

    factor_C: NDArray[np.float64]
    noise: float
    before: float

    @property
    def changes(self) -> bool:
        """Whether there is anything to divide."""
        return bool(np.any(self.factor_C != 1.0))


def choose_factors(
    readers: Sequence[ir.Node], range_C: NDArray[np.float64], power_C: NDArray[np.float64]
) -> Factors:
    """The factors with the least predicted noise at the outputs of the layers that read the channels.

    Args:
        readers: The layers.
        range_C: The largest size of each channel's values.
        power_C: Their mean square.
    """
    weights = [InputWeights.of(reader) for reader in readers]
    ones_C, live_C = np.ones(len(range_C)), range_C > 0
    if any(len(each.square_C) != len(range_C) for each in weights) or not live_C.any():
        return Factors(ones_C, 0.0, 0.0)
    weight_C = np.max([each.largest_C() for each in weights], axis=0).astype(np.float64)
    before = least = total_noise(weights, ones_C, range_C, power_C)
    best_C, usable = ones_C, live_C & (weight_C > 0)
    for strength in _STRENGTHS if usable.any() else ():
        trial_C = np.ones(len(range_C))
        trial_C[usable] = range_C[usable] ** strength / weight_C[usable] ** (1.0 - strength)
        middle = np.exp(np.mean(np.log(trial_C[usable])))
        trial_C[usable] = np.clip(trial_C[usable] / middle, 1.0 / _MOST_GROWTH, _MOST)
        noise = total_noise(weights, trial_C, range_C, power_C)
        # A gain below a tenth of a decibel is within what the prediction can tell.
        if noise < least * 0.977:
            best_C, least = trial_C, noise
    return Factors(best_C, least, before)


def _apply(graph: ir.Graph, region: Region, factor_C: NDArray[np.float64]) -> None:
    for maker in region.makers:
        if maker.op_type == "LayerNormalization":
            for affine in maker.inputs[1:3]:
                array = constant(affine)
                if affine is not None and array is not None:
                    scaled = np.asarray(array, np.float64) / factor_C
                    set_initializer(graph, name_of(affine), scaled.astype(np.float32))
        else:
            scale_output(graph, maker, 1.0 / factor_C)
    for reader in region.readers:
        w = weight_of(reader).astype(np.float64)
        held = reader.inputs[1]
        assert held is not None
        set_initializer(graph, name_of(held), _scale_inputs(reader, w, factor_C).astype(np.float32))


def _commutes(node: ir.Node) -> bool:
    """Whether a positive factor per channel passes through the node."""
    if node.op_type not in _COMMUTE or len(node.outputs) != 1:
        return False
    if node.op_type == "Add":
        # A constant would have to take the factor too.
        shapes = [v.shape for v in node.inputs if v is not None and not v.is_initializer()]
        return len(shapes) == 2 and None not in shapes and shapes[0] == shapes[1]
    if node.op_type == "Clip":
        # An upper bound does not move with the channel: grown channels would be cut on samples that
        # calibration did not show (EfficientNet-Lite0 on other photographs: 14 dB, in float).
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        bounded = len(node.inputs) > 2 and node.inputs[2] is not None
        return low is not None and float(low) == 0.0 and not bounded
    return True


def _makes(node: ir.Node) -> bool:
    """Whether the node's channels are made by constants that only it reads."""
    if node.op_type in {"Conv", "Gemm"}:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return constant(node.inputs[1]) is not None and (bias is None or constant(bias) is not None)
    if node.op_type == "LayerNormalization":
        axis = int_attribute(node, "axis", -1)
        shape = None if node.inputs[0] is None else node.inputs[0].shape
        own = all(v is None or (constant(v) is not None and len(v.uses()) == 1) for v in node.inputs[1:])
        return own and (axis == -1 or (shape is not None and axis == len(shape) - 1))
    return False


def _one_axis(region: Region) -> bool:
    """Convolution channels are axis 1, linear features the last axis; a region has one kind only."""
    makes_conv = {node.op_type == "Conv" for node in region.makers}
    reads_conv = {node.op_type == "Conv" for node in region.readers}
    return len(makes_conv | reads_conv) == 1


def _channel_axis(region: Region) -> int:
    return 1 if region.makers[0].op_type == "Conv" else -1


def _scale_inputs(
    node: ir.Node, w: NDArray[np.float64], factor_C: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weight with what reads input channel c multiplied by ``factor[c]``."""
    if node.op_type == "Conv":
        groups = int_attribute(node, "group", 1)
        per_row_OI = np.repeat(factor_C.reshape(groups, -1), len(w) // groups, axis=0)
        return np.asarray(w * per_row_OI.reshape(*per_row_OI.shape, *[1] * (w.ndim - 2)))
    if node.op_type == "Gemm" and int_attribute(node, "transB", 0):
        return w * factor_C
    return np.asarray(w * factor_C[:, None])
