"""Pad widths that the int8 kernels do not take whole: channels of zeros, which nothing reads.

ONNX Runtime's quick int8 convolutions (MLAS ``MlasConvSym``) want a multiple of 4 channels in and a multiple
of 8, at least 16, out; depthwise ones a multiple of 16. Everything else takes a path of about half the speed:
a 3 × 3 convolution from 32 to 17 channels 71 µs, from 32 to 24 53 µs; a depthwise one of 83 channels 93 µs,
of 96 43 µs (32 × 32 positions). Pruned widths are seldom such multiples. A *region* is what must keep one
width: the convolutions that write it, all that goes channel by channel in between, and those that read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from penjing.quantize.graph import Classes, constant, int_attribute
from penjing.quantize.int8_conv import is_dense, is_int8, is_parameter, levels_of, pad_parameter

_CHANNELWISE = frozenset(
    {
        *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Add", "Mul"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "QuantizeLinear", "DequantizeLinear"),
    }
)
_FEWEST, _BLOCK, _DEPTHWISE_BLOCK = 16, 8, 16


@dataclass
class _Region:
    """Tensors of one width.

    Attributes:
        values: The tensors.
        writers, readers, depthwise: Convolutions of all channels into it, out of it, and channel by channel.
        frozen: Something reads or writes it that a wider tensor would change.
    """

    values: list[ir.Value] = field(default_factory=list)
    writers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    depthwise: list[ir.Node] = field(default_factory=list)
    frozen: bool = False


def widen(model: ir.Model) -> int:
    """Pad the int8 convolutions of a graph that `emit` gave, in place; gives the number of widths padded.

    The outputs stay what they were: padded channels are written by zero weights and read by zero weights.
    """
    padded = 0
    for region in _regions(model.graph):
        width = _width(region)
        if width is None:
            continue
        block = _DEPTHWISE_BLOCK if region.depthwise else _BLOCK
        extra = max(_FEWEST, -(-width // block) * block) - width
        if extra:
            _pad(model.graph, region, width, extra)
            padded += 1
    return padded


def _regions(graph: ir.Graph) -> list[_Region]:
    """Tensors that must keep one width, together, in graph order."""
    classes = Classes[ir.Value]()
    for node in graph:
        if _passes(node):
            for value in _data(node):
                classes.join(value, node.outputs[0])
    found: dict[ir.Value, _Region] = {}

    def region(value: ir.Value) -> _Region:
        return found.setdefault(classes.root(value), _Region())

    for value in graph.inputs:
        region(value).frozen = True
    for node in graph:
        for read in node.inputs:
            if read is None or read.is_initializer() or is_parameter(read):
                continue
            if is_dense(node) and read is node.inputs[0]:
                region(read).readers.append(node)
            elif not (_passes(node) and any(read is one for one in _data(node))):
                region(read).frozen = True
        for value in node.outputs:
            if is_parameter(value):
                continue
            of = region(value)
            of.values.append(value)
            of.frozen |= value.is_graph_output()
            if is_dense(node):
                of.writers.append(node)
            elif node.op_type == "Conv" and _passes(node):
                of.depthwise.append(node)
            elif not _passes(node):
                of.frozen = True
    return list(found.values())


def _width(region: _Region) -> int | None:
    """The region's width, where it may change and some convolution would gain."""
    if region.frozen or not region.writers or not region.readers:
        return None
    widths = {levels_of(node).shape[0] for node in [*region.writers, *region.depthwise]}
    widths |= {levels_of(node).shape[1] for node in region.readers}
    widths |= {value.shape[1] for value in region.values if value.shape is not None}
    width = widths.pop()
    return width if isinstance(width, int) and not widths else None


def _pad(graph: ir.Graph, region: _Region, width: int, extra: int) -> None:
    for node in [*region.writers, *region.depthwise]:
        for position in (1, 2):
            if position < len(node.inputs) and (value := node.inputs[position]) is not None:
                pad_parameter(graph, value, 0, extra)
    for node in region.readers:
        weight = node.inputs[1]
        assert weight is not None
        pad_parameter(graph, weight, 1, extra)
    for node in region.depthwise:
        node.attributes["group"] = ir.AttrInt64("group", width + extra)
    for value in region.values:
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[0], width + extra, *value.shape[2:]])


def _passes(node: ir.Node) -> bool:
    """Whether channel c of the output depends on channel c of the inputs alone, at any width."""
    if node.op_type == "Conv":
        group = int_attribute(node, "group", 1)
        return group > 1 and is_int8(node) and levels_of(node).shape[:2] == (group, 1)
    if node.op_type not in _CHANNELWISE or len(node.outputs) != 1 or is_parameter(node.outputs[0]):
        return False
    constants = [array for value in node.inputs if (array := constant(value)) is not None]
    if any(array.size != 1 for array in constants):
        return False
    ranks = {len(value.shape) if value.shape is not None else 0 for value in _data(node)}
    return len(ranks) == 1 and ranks.pop() > 2


def _data(node: ir.Node) -> list[ir.Value]:
    """The inputs that are activations."""
    inputs = node.inputs[:1] if node.op_type in {"Conv", "Clip"} else node.inputs
    return [value for value in inputs if value is not None and not value.is_initializer()]
