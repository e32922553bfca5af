"""Small questions asked of the int8 convolutions of a graph that `emit` gave, and longer weights for them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.graph import constant, int_attribute, name_of, set_initializer


def pad_parameter(graph: ir.Graph, value: ir.Value, axis: int, extra: int) -> None:
    """Zeros at the end of an 8-bit weight or a bias; the steps of new outputs repeat the last one's."""
    dequantize = value.producer()
    assert dequantize is not None
    stored, scale, zero = dequantize.inputs
    for part in (stored, scale, zero) if axis == 0 else (stored,):
        assert part is not None
        array = numbers(part)
        widths = [(0, extra if dim == axis else 0) for dim in range(array.ndim)]
        longer = np.pad(array, widths, mode="edge") if part is scale else np.pad(array, widths)
        set_initializer(graph, name_of(part), longer)
    value.shape = ir.Shape(numbers(stored).shape)


def set_levels(graph: ir.Graph, node: ir.Node, levels: NDArray[np.generic]) -> None:
    """Give an int8 convolution another weight under the same steps."""
    value = node.inputs[1]
    assert value is not None
    dequantize = value.producer()
    assert dequantize is not None
    stored = dequantize.inputs[0]
    assert stored is not None
    set_initializer(graph, name_of(stored), levels)
    value.shape = ir.Shape(levels.shape)


def is_parameter(value: ir.Value) -> bool:
    """Whether it is an 8-bit weight or a bias, restored."""
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None


def is_int8(node: ir.Node) -> bool:
    """Whether all parameters of a convolution are restored ones that no other node uses."""
    parameters = [value for value in node.inputs[1:] if value is not None]
    return all(is_parameter(value) and _is_own(value) for value in parameters)


def _is_own(value: ir.Value) -> bool:
    maker = value.producer()
    assert maker is not None
    parts: Iterable[ir.Value | None] = (value, *maker.inputs)
    return all(len(part.uses()) == 1 for part in parts if part is not None)


def is_dense(node: ir.Node) -> bool:
    """An int8 convolution of all channels into all."""
    return node.op_type == "Conv" and int_attribute(node, "group", 1) == 1 and is_int8(node)


def levels_of(node: ir.Node) -> NDArray[np.generic]:
    """The levels of an int8 convolution's weight."""
    value = node.inputs[1]
    assert value is not None
    maker = value.producer()
    assert maker is not None
    return numbers(maker.inputs[0])


def numbers(value: ir.Value | None) -> NDArray[np.generic]:
    """What a constant holds."""
    array = constant(value)
    assert array is not None
    return array
