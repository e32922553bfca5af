"""Bring tensors to int8 convolutions in numbers of channels that their kernels take whole.

ONNX Runtime's quick int8 convolutions (MLAS ``MlasConvSym``) want a multiple of 4 channels; with an image's
three, the first convolution of a network is slower in int8 than in float. A convolution with a stride of 2
(or 4) reads the image folded into 4 (or 16) times the channels instead, at stride 1; other convolutions get
channels of zeros, where `penjing.quantize.widen` could not give them. Both give the same integers. One
thread, AVX-512, 224 × 224, with what brings the image to 8 bits: 3 × 3 to 32 channels at stride 2
0.50 → 0.33 ms (fp32 0.23), 7 × 7 to 64 1.6 → 1.1 ms (fp32 1.6), 3 × 3 to 64 at stride 1 3.6 → 2.0 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class _Folded:
    """One dimension of a convolution over blocks of ``stride`` positions.

    Attributes:
        stride: Positions in a block.
        side: Blocks of the input.
        kernel: Blocks that the kernel reaches.
        offset: Positions of the first of them before the kernel begins.
        begin, end: Blocks of padding.
    """

    stride: int
    side: int
    kernel: int
    offset: int
    begin: int
    end: int


def feed_whole(model: ir.Model, *, fold: bool = True) -> int:
    """Feed the convolutions of a graph that `emit` gave so, in place; gives how many were changed.

    Args:
        model: The graph.
        fold: Whether images may be folded, which makes other neighbours of a kernel's weights.
    """
    feeder, changed = _Feeder(model.graph), 0
    for conv in [node for node in model.graph if is_dense(node)]:
        outputs, channels, *kernel = levels_of(conv).shape
        if len(kernel) != 2 or outputs < _FEWEST_OUT or channels % _MULTIPLE == 0:
            continue
        if fold and (dims := _folded(conv)):
            feeder.fold(conv, dims)
        elif np.prod(kernel) <= _MOST_POSITIONS or channels > _MULTIPLE:
            feeder.pad(conv, -channels % _MULTIPLE)
        else:
            continue
        changed += 1
    return changed


def make_even(model: ir.Model) -> None:
    """Add, in place, the channels of zeros that `penjing.quantize.encode.lone_channels` counted on."""
    feeder = _Feeder(model.graph)
    for conv in [node for node in model.graph if is_dense(node)]:
        _, channels, *kernel = levels_of(conv).shape
        if channels % 2 and np.prod(kernel) > 1:
            feeder.pad(conv, 1)


class _Feeder:
    """Gives convolutions of one graph tensors of their own."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.names = graph, Names(graph)
        self.padded: dict[tuple[ir.Value, int], ir.Value] = {}

    def fold(self, conv: ir.Node, dims: Sequence[_Folded]) -> None:
        """``SpaceToDepth`` of the float image: older versions of the runtime do not have it for bytes."""
        quantize = _maker(_restore(conv).inputs[0])
        image, levels, stride = quantize.inputs[0], levels_of(conv), dims[0].stride
        assert image is not None
        assert image.shape is not None
        shape = [image.shape[0], levels.shape[1] * stride**2, *(dim.side for dim in dims)]
        name = f"{name_of(image)}.folded"
        folded = self._add(conv, "SpaceToDepth", [image], name, image, shape, {"blocksize": stride})
        stored = self._add(
            conv, "QuantizeLinear", [folded, *quantize.inputs[1:]], f"{name}.u8", quantize.outputs[0], shape
        )
        self._feed(conv, self._restored(conv, stored))
        set_levels(self.graph, conv, _fold_levels(levels, dims))
        for key, ints in {
            "kernel_shape": [dim.kernel for dim in dims],
            "strides": [1, 1],
            "pads": [*(dim.begin for dim in dims), *(dim.end for dim in dims)],
        }.items():
            conv.attributes[key] = ir.AttrInt64s(key, ints)

    def pad(self, conv: ir.Node, extra: int) -> None:
        """Channels of zeros behind those of the 8-bit tensor; convolutions that read one share them."""
        restore, weight = _restore(conv), conv.inputs[1]
        stored, _, zero = restore.inputs
        assert stored is not None
        assert weight is not None
        if (stored, extra) not in self.padded:
            name, rank = f"{name_of(stored)}.padded", levels_of(conv).ndim
            sides = np.zeros(2 * rank, np.int64)
            sides[rank + 1] = extra
            pads = set_initializer(self.graph, self.names.fresh(f"{name}.sides"), sides)
            shape = None
            if stored.shape is not None:
                shape = [stored.shape[0], levels_of(conv).shape[1] + extra, *stored.shape[2:]]
            wider = self._add(conv, "Pad", [stored, pads, zero], name, stored, shape)
            self.padded[stored, extra] = self._restored(conv, wider)
        self._feed(conv, self.padded[stored, extra])
        pad_parameter(self.graph, weight, 1, extra)

    def _restored(self, conv: ir.Node, stored: ir.Value) -> ir.Value:
        restore = _restore(conv)
        shape = None if stored.shape is None else list(stored.shape)
        name = f"{name_of(stored)}.float"
        return self._add(
            conv, "DequantizeLinear", [stored, *restore.inputs[1:]], name, restore.outputs[0], shape
        )

    def _add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        like: ir.Value,
        shape: Sequence[ir.SymbolicDim | int] | None,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        """The output of a new node, of the type of ``like``."""
        node = ir.node(op_type, inputs, attributes, name=self.names.fresh(name))
        out = node.outputs[0]
        out.name, out.type, out.shape = node.name, like.type, None if shape is None else ir.Shape(shape)
        self.graph.insert_before(before, node)
        return out

    def _feed(self, conv: ir.Node, restored: ir.Value) -> None:
        """Let the convolution read this, and remove what nothing reads any more."""
        node: ir.Node | None = _restore(conv)
        conv.replace_input_with(0, restored)
        while node is not None and node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            out, source = node.outputs[0], node.inputs[0]
            if out.uses() or out.is_graph_output():
                break
            self.graph.remove(node, safe=True)
            node = None if source is None else source.producer()


def _restore(conv: ir.Node) -> ir.Node:
    """What restores an int8 convolution's input from 8 bits."""
    return _maker(conv.inputs[0])


def _maker(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    return node


def _folded(conv: ir.Node) -> tuple[_Folded, ...]:
    """Both dimensions over blocks, where a float image of whole blocks comes to it; else none."""
    stored = _restore(conv).inputs[0]
    quantize = None if stored is None else stored.producer()
    if quantize is None or quantize.op_type != "QuantizeLinear" or not _comes_in_float(quantize.inputs[0]):
        return ()
    image, kernel = quantize.inputs[0], levels_of(conv).shape[2:]
    strides, pads = ints_attribute(conv, "strides", [1, 1]), ints_attribute(conv, "pads", [0] * 4)
    stride = strides[0]
    if (
        strides != [stride, stride]
        or stride not in _STRIDES
        or min(kernel) < stride
        or ints_attribute(conv, "dilations", [1, 1]) != [1, 1]
        or "auto_pad" in conv.attributes
        or image is None
        or image.shape is None
    ):
        return ()
    found = []
    for side, reach, begin, end in zip(image.shape[2:], kernel, pads[:2], pads[2:], strict=True):
        if not isinstance(side, int) or side % stride:
            return ()
        blocks, before = side // stride, -(-begin // stride)
        offset = before * stride - begin
        reached = -(-(offset + reach) // stride)
        outputs = (side + begin + end - reach) // stride + 1
        found.append(
            _Folded(stride, blocks, reached, offset, before, outputs + reached - 1 - blocks - before)
        )
    return tuple(found) if all(dim.end >= 0 for dim in found) else ()


def _comes_in_float(value: ir.Value | None) -> bool:
    """Whether no int8 kernel makes the value: those become one with the QuantizeLinear behind them."""
    maker = None if value is None else value.producer()
    makers = [] if maker is None else [one.producer() for one in maker.inputs if one is not None]
    return not any(one is not None and one.op_type == "DequantizeLinear" for one in makers)


def _fold_levels(levels: NDArray[np.generic], dims: Sequence[_Folded]) -> NDArray[np.generic]:
    """``[O, C, H, W]`` → ``[O, s·s·C, H', W']``, channels in the order of ``SpaceToDepth``."""
    outputs, channels, height, width = levels.shape
    stride, (rows, columns) = dims[0].stride, (dim.kernel for dim in dims)
    top, left = (dim.offset for dim in dims)
    whole = np.zeros((outputs, channels, rows * stride, columns * stride), levels.dtype)
    whole[:, :, top : top + height, left : left + width] = levels
    blocks = whole.reshape(outputs, channels, rows, stride, columns, stride)
    return blocks.transpose(0, 3, 5, 1, 2, 4).reshape(outputs, -1, rows, columns)
