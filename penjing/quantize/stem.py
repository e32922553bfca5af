"""Bring images to int8 convolutions in numbers of channels that their kernels take whole.

ONNX Runtime's quick int8 convolutions (MLAS ``MlasConvSym``) want a multiple of 4 channels; with an image's
three, the first convolution of a network is slower in int8 than in float. A convolution with a stride of 2 (or
4) reads the image folded into 4 (or 16) times the channels instead, at stride 1; others get channels of
zeros. Both give the same integers. One thread, AVX-512, 224 × 224, with what brings the image to 8 bits:
3 × 3 to 32 channels at stride 2 0.50 → 0.33 ms (fp32 0.23), 7 × 7 to 64 1.6 → 1.1 ms (fp32 1.6), 3 × 3 to 64 at
stride 1 3.6 → 2.0 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.graph import Names, ints_attribute, name_of, set_initializer
from penjing.quantize.int8_conv import is_dense, levels_of, pad_parameter, set_levels

_MULTIPLE, _FEWEST_OUT = 4, 16
_STRIDES = (2, 4)
_MOST_POSITIONS = 25
"""Of a kernel: with four channels at each of more, the quick kernel is no quicker."""


@dataclass(frozen=True)
class _Stem:
    """An int8 convolution of a tensor that comes in float.

    Attributes:
        conv: The convolution.
        dequantize, quantize: What stands before it.
        source: The float tensor, ``[N, C, H, W]``.
    """

    conv: ir.Node
    dequantize: ir.Node
    quantize: ir.Node
    source: ir.Value


@dataclass(frozen=True)
class _Folded:
    """One dimension of a convolution over blocks of ``stride`` positions.

    Attributes:
        stride: Positions in a block.
        kernel: Blocks that the kernel reaches.
        offset: Positions of the first block before the kernel begins.
        begin, end: Blocks of padding.
    """

    stride: int
    kernel: int
    offset: int
    begin: int
    end: int


def feed_whole(model: ir.Model) -> int:
    """Rewrite such convolutions of a graph that `emit` gave, in place; gives their number."""
    graph, names = model.graph, Names(model.graph)
    found = [stem for node in graph if (stem := _stem(node)) is not None]
    return sum(_fold(graph, names, stem) or _pad(graph, names, stem) for stem in found)


def _stem(node: ir.Node) -> _Stem | None:
    """The convolution and what feeds it, where the quick kernel would take it but for its channels."""
    if not is_dense(node) or node.attributes.get("auto_pad") is not None:
        return None
    shape = levels_of(node).shape
    if len(shape) != 4 or shape[0] < _FEWEST_OUT or shape[1] % _MULTIPLE == 0:
        return None
    dequantize = _only_maker(node.inputs[0], "DequantizeLinear")
    quantize = None if dequantize is None else _only_maker(dequantize.inputs[0], "QuantizeLinear")
    if dequantize is None or quantize is None:
        return None
    source = quantize.inputs[0]
    assert source is not None
    maker = source.producer()
    makers = [] if maker is None else [value.producer() for value in maker.inputs if value is not None]
    if any(one is not None and one.op_type == "DequantizeLinear" for one in makers):
        return None  # the runtime makes one int8 kernel of its maker and this QuantizeLinear
    return _Stem(node, dequantize, quantize, source)


def _only_maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """What made the value, of this type, where one node alone reads it."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != op_type:
        return None
    return node if len(value.uses()) == 1 and not value.is_graph_output() else None


def _fold(graph: ir.Graph, names: Names, stem: _Stem) -> bool:
    """``SpaceToDepth`` before the convolution, in float, which every version of the runtime has."""
    levels, shape = levels_of(stem.conv), stem.source.shape
    folded = None if shape is None or len(shape) != 4 else _folded(stem.conv, levels.shape[2:], shape[2:])
    if folded is None:
        return False
    stride = folded[0].stride
    move = ir.node("SpaceToDepth", [stem.source], {"blocksize": stride}, name=f"{name_of(stem.source)}.fold")
    out = move.outputs[0]
    out.name, out.dtype = names.fresh(f"{name_of(stem.source)}.folded"), stem.source.dtype
    assert shape is not None
    sides = [int(side) // stride for side in shape[2:] if isinstance(side, int)]
    out.shape = ir.Shape([shape[0], levels.shape[1] * stride**2, *sides])
    graph.insert_before(stem.quantize, move)
    stem.quantize.replace_input_with(0, out)
    for value in (stem.quantize.outputs[0], stem.dequantize.outputs[0]):
        value.shape = out.shape
    set_levels(graph, stem.conv, _fold_levels(levels, folded))
    attributes = {
        "kernel_shape": [dim.kernel for dim in folded],
        "strides": [1, 1],
        "pads": [*(dim.begin for dim in folded), *(dim.end for dim in folded)],
    }
    for name, numbers in attributes.items():
        stem.conv.attributes[name] = ir.AttrInt64s(name, numbers)
    return True


def _folded(conv: ir.Node, kernel: tuple[int, ...], sides: tuple[object, ...]) -> list[_Folded] | None:
    """Both dimensions over blocks, where one stride that divides the sides goes for both."""
    strides, pads = ints_attribute(conv, "strides", [1, 1]), ints_attribute(conv, "pads", [0] * 4)
    stride = strides[0]
    if strides != [stride, stride] or stride not in _STRIDES or min(kernel) < stride:
        return None
    if ints_attribute(conv, "dilations", [1, 1]) != [1, 1]:
        return None
    found = []
    for dim, side in enumerate(sides):
        if not isinstance(side, int) or side % stride:
            return None
        before, after = pads[dim], pads[dim + 2]
        begin = -(-before // stride)
        offset = begin * stride - before
        blocks = -(-(offset + kernel[dim]) // stride)
        outputs = (side + before + after - kernel[dim]) // stride + 1
        end = outputs + blocks - 1 - side // stride - begin
        if end < 0:
            return None
        found.append(_Folded(stride, blocks, offset, begin, end))
    return found


def _fold_levels(levels: NDArray[np.generic], dims: list[_Folded]) -> NDArray[np.generic]:
    """``[O, C, H, W]`` → ``[O, (s·s·C), H', W']``, channels in the order of ``SpaceToDepth``."""
    out, channels, *kernel = levels.shape
    stride, (rows, columns) = dims[0].stride, (dims[0].kernel, dims[1].kernel)
    whole = np.zeros((out, channels, rows * stride, columns * stride), levels.dtype)
    top, left = dims[0].offset, dims[1].offset
    whole[:, :, top : top + kernel[0], left : left + kernel[1]] = levels
    blocks = whole.reshape(out, channels, rows, stride, columns, stride)
    return blocks.transpose(0, 3, 5, 1, 2, 4).reshape(out, -1, rows, columns)


def _pad(graph: ir.Graph, names: Names, stem: _Stem) -> bool:
    """Channels of zeros behind the 8-bit tensor's own."""
    _, channels, *kernel = levels_of(stem.conv).shape
    if np.prod(kernel) > _MOST_POSITIONS:
        return False
    extra = -channels % _MULTIPLE
    stored, zero = stem.quantize.outputs[0], stem.quantize.inputs[2]
    name = name_of(stored)
    pads = set_initializer(
        graph, names.fresh(f"{name}.pads"), np.asarray([0, 0, 0, 0, 0, extra, 0, 0], np.int64)
    )
    pad = ir.node("Pad", [stored, pads, zero], name=f"{name}.pad")
    padded = pad.outputs[0]
    padded.name, padded.dtype = names.fresh(f"{name}.padded"), stored.dtype
    if stored.shape is not None:
        padded.shape = ir.Shape([stored.shape[0], channels + extra, *stored.shape[2:]])
    stem.dequantize.outputs[0].shape = padded.shape
    graph.insert_before(stem.dequantize, pad)
    stem.dequantize.replace_input_with(0, padded)
    weight = stem.conv.inputs[1]
    assert weight is not None
    pad_parameter(graph, weight, 1, extra)
    return True
