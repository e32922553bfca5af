"""Channels-last networks in a file: transposes around convolutions, moved until they meet and cancel.

ONNX convolves channels first, so that a network that is written channels last (Keras) turns each
convolution's result back. ONNX Runtime moves such transposes in float by itself; what reads 8-bit tensors
sees them between a convolution and its activation, which then are rounded twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_Order = tuple[int, ...]


def cancel_transposes(model: ir.Model) -> ir.Model:
    """The same function with fewer transposes, or the model itself where moving them gains nothing."""
    if not any(_to_last(node) for node in model.graph):
        return model
    tried = model.clone()
    for node in list(tried.graph):
        if node.op_type == "Transpose":
            _compose(node)
        else:
            _pass(tried.graph, node)
    for node in reversed(list(tried.graph)):
        if node.op_type == "Transpose" and not _is_read(node.outputs[0]):
            tried.graph.remove(node, safe=True)
    return tried if _count(tried) < _count(model) else model


def _count(model: ir.Model) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _order(node: ir.Node | None) -> _Order:
    """The ``perm`` of a Transpose; empty for any other node."""
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return ()
    return tuple(int(axis) for axis in node.attributes["perm"].as_ints())


def _to_last(node: ir.Node | None) -> _Order:
    """The ``perm`` of a Transpose that puts channels last; empty for any other node."""
    order = _order(node)
    return order if len(order) > 2 and order == (0, *range(2, len(order)), 1) else ()


def _compose(node: ir.Node) -> None:
    """Read what a Transpose before it reads; what it gives is that itself where both cancel."""
    source = node.inputs[0]
    before = None if source is None else source.producer()
    first, second = _order(before), _order(node)
    if before is None or not first or not second:
        return
    both = [first[axis] for axis in second]
    inner, out = before.inputs[0], node.outputs[0]
    assert inner is not None
    if both == sorted(both) and not out.is_graph_output():
        out.replace_all_uses_with(inner)
    else:
        node.replace_input_with(0, inner)
        node.attributes["perm"] = ir.AttrInt64s("perm", both)


def _pass(graph: ir.Graph, node: ir.Node) -> None:
    """Let a node read what stands before its transposes, and turn what it gives instead."""
    data = [value for value in node.inputs if value is not None and not value.is_initializer()]
    orders = {_to_last(value.producer()) for value in data}
    rule = _RULES.get(node.op_type)
    if rule is None or len(orders) != 1 or not (order := orders.pop()):
        return
    turned = rule(node, order)
    if turned is None:
        return
    for at, value in enumerate(node.inputs):
        maker = None if value is None else value.producer()
        if maker is not None:
            node.replace_input_with(at, maker.inputs[0])
        elif at in turned:
            node.replace_input_with(at, _held(graph, f"{node.outputs[0].name}.input_{at}", turned[at]))
    if not _drops_axes(node):
        _turn(graph, node, order)


_Turned = dict[int, NDArray[np.generic]]
"""Constants as a node needs them channels first, by the place of the input."""


def _elementwise(node: ir.Node, order: _Order) -> _Turned | None:
    turned: _Turned = {}
    for at, value in enumerate(node.inputs):
        if value is not None and value.is_initializer():
            array = _numbers(value)
            if array is None or array.ndim > len(order):
                return None
            if array.size > 1:
                whole = array.reshape([1] * (len(order) - array.ndim) + [*array.shape])
                turned[at] = whole.transpose(np.argsort(order))
    return turned


def _concat(node: ir.Node, order: _Order) -> _Turned:
    axis = node.attributes["axis"].as_int() % len(order)
    node.attributes["axis"] = ir.AttrInt64("axis", order[axis])
    return {}


def _pad(node: ir.Node, order: _Order) -> _Turned | None:
    amounts = _numbers(node.inputs[1]) if len(node.inputs) < 4 else None  # the fourth names axes
    if amounts is None or amounts.size != 2 * len(order):
        return None
    return {1: amounts.reshape(2, -1)[:, np.argsort(order)].reshape(-1)}


def _mean(node: ir.Node, order: _Order) -> _Turned | None:
    axes = _numbers(node.inputs[1]) if len(node.inputs) == 2 else None
    if axes is None:
        return None
    gone = sorted(int(axis) % len(order) for axis in axes)
    left = [order[axis] for axis in range(len(order)) if axis not in gone]
    if _drops_axes(node) and left != sorted(left):  # what is left would have to be turned by another order
        return None
    return {1: np.array([order[axis] for axis in gone], np.int64)}


def _drops_axes(node: ir.Node) -> bool:
    return node.op_type == "ReduceMean" and not node.attributes.get_int("keepdims", 1)


_RULES: dict[str, Callable[[ir.Node, _Order], _Turned | None]] = {
    **dict.fromkeys(
        ("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "LeakyRelu", "Gelu")
        + ("Mish", "Softplus", "Erf", "Exp", "Sqrt", "Abs", "Neg", "Add", "Sub", "Mul", "Div", "Max", "Min"),
        _elementwise,
    ),
    "Concat": _concat,
    "Pad": _pad,
    "ReduceMean": _mean,
}


def _turn(graph: ir.Graph, node: ir.Node, order: _Order) -> None:
    """A Transpose behind the node gives what the node gave, under its name."""
    old = node.outputs[0]
    after = ir.node("Transpose", [old], {"perm": list(order)}, name=f"{node.name}.turned")
    new = after.outputs[0]
    new.shape, new.type = old.shape, old.type
    after.metadata_props.update(node.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    after.replace_input_with(0, old)
    new.name, old.name = old.name, f"{old.name}.channels_first"
    if old.shape is not None:
        dims = list(old.shape)
        old.shape = ir.Shape([dims[order.index(axis)] for axis in range(len(order))])
    graph.insert_after(node, after)


def _numbers(value: ir.Value | None) -> NDArray[np.generic] | None:
    if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def _held(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
