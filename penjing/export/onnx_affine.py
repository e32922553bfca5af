"""Factors and shifts behind a layer, made part of its weights: batch norms that are written out, as Keras
writes them (``(x − μ)·k + β``, channels last), factors and biases that stand apart.

Runtimes fold a BatchNormalization into the convolution before it, but not this, and between 8-bit tensors
each step would be rounded by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_STEPS = frozenset({"Add", "Sub", "Mul", "Div"})
_NORM = 3
"""Steps of a norm. Fewer behind a MatMul are its bias and a layer scale, which cost next to nothing and keep
a residual branch in float up to its sum: ConvNeXt in int8 is 34.5 dB from fp32 with them, 32.1 dB without.
"""

_Row = NDArray[np.float64]


@dataclass
class _Chain:
    """What follows a layer: ``factor[o]·y[o] + shift[o]`` of its output channels.

    Attributes:
        factor_O: Factors.
        shift_O: Shifts.
        steps: The nodes that compute it, in their order; transposes between them are not among them.
    """

    factor_O: _Row
    shift_O: _Row
    steps: list[ir.Node] = field(default_factory=list)


def fold_affine(graph: ir.Graph) -> int:
    """Fold what scales and shifts the channels of a Conv, ConvTranspose or MatMul into its constants.

    Weights that several nodes read are copied. A MatMul, which has no bias, takes norms alone and keeps one
    Add. Constants that nothing reads go.

    Args:
        graph: Changed in place.

    Returns:
        How many nodes went.
    """
    gone = 0
    for node in list(graph):
        weight = _floats(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is not None and (axis := _out_axis(node, weight)) is not None:
            gone += _fold(graph, node, weight, axis)
    for name in [name for name, held in graph.initializers.items() if not held.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]
    return gone


def _out_axis(node: ir.Node, weight: NDArray[np.float32]) -> int | None:
    """The weight's output channel axis, of layers that can take factors."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) == 1:
        return 1
    return 1 if node.op_type == "MatMul" and weight.ndim == 2 else None


def _fold(graph: ir.Graph, node: ir.Node, weight: NDArray[np.float32], axis: int) -> int:
    held = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    bias = None if held is None else _floats(held)
    if held is not None and bias is None:
        return 0
    chain = _chain(node, weight, axis)
    keeps = node.op_type == "MatMul" and chain.shift_O.any()
    if len(chain.steps) < (_NORM if node.op_type == "MatMul" else 1):
        return 0
    shape = [1] * weight.ndim
    shape[axis] = -1
    scaled = weight.astype(np.float64) * chain.factor_O.reshape(shape)
    shifted_O = (0.0 if bias is None else bias.astype(np.float64)) * chain.factor_O + chain.shift_O
    with np.errstate(over="ignore"):
        arrays = scaled.astype(np.float32), shifted_O.astype(np.float32)
    if not all(np.isfinite(array).all() for array in arrays):
        return 0
    _give(graph, node, 1, arrays[0])
    if keeps:
        kept = chain.steps.pop(0)
        kept.op_type = "Add"
        data = next(value for value in kept.inputs if value is not None and _floats(value) is None)
        kept.replace_input_with(0, data)
        kept.replace_input_with(1, None)
        _give(graph, kept, 1, arrays[1])
    elif node.op_type != "MatMul" and (held is not None or arrays[1].any()):
        _give(graph, node, 2, arrays[1])
    for step in chain.steps:
        _take_out(graph, step)
    return len(chain.steps)


def _chain(node: ir.Node, weight: NDArray[np.float32], axis: int) -> _Chain:
    count, rank = weight.shape[axis], weight.ndim
    chain = _Chain(np.ones(count), np.zeros(count))
    at = -1 if node.op_type == "MatMul" else 1 - rank  # the channels' axis, from the end
    value = node.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        (reader,) = (use.node for use in value.uses())
        if reader.op_type == "Transpose" and node.op_type != "MatMul" and "perm" in reader.attributes:
            order = [int(i) for i in reader.attributes["perm"].as_ints()]
            at = order.index(at + rank) - rank
        elif (step := _step(reader, value, count, at, rank)) is not None:
            chain.factor_O, chain.shift_O = chain.factor_O * step[0], chain.shift_O * step[0] + step[1]
            chain.steps.append(reader)
        else:
            break
        value = reader.outputs[0]
    return chain


def _step(reader: ir.Node, value: ir.Value, count: int, at: int, rank: int) -> tuple[_Row, _Row] | None:
    """Factor and shift of a node that scales or shifts channels by constants; None for any other."""
    if reader.op_type not in _STEPS:
        return None
    first = reader.inputs[0] is value
    given = _floats(reader.inputs[1 if first else 0])
    row_O = None if given is None else _row(given, count, at, rank)
    if row_O is None:
        return None
    one_O, none_O = np.ones(count), np.zeros(count)
    if reader.op_type == "Add":
        return one_O, row_O
    if reader.op_type == "Sub":
        return (one_O, -row_O) if first else (-one_O, row_O)
    if reader.op_type == "Mul":
        return row_O, none_O
    return (1 / row_O, none_O) if first and row_O.all() else None


def _row(given: NDArray[np.float32], count: int, at: int, rank: int) -> _Row | None:
    """One number for each channel, where the constant has no other axis than theirs."""
    if given.ndim > rank or (given.size != 1 and (given.ndim < -at or given.shape[at] != given.size)):
        return None
    if given.size not in (1, count):
        return None
    return np.broadcast_to(given.reshape(-1).astype(np.float64), count)


def _floats(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The numbers of an initializer of float32; None for anything else."""
    if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
        return None
    array = np.asarray(value.const_value.numpy())
    return array if array.dtype == np.float32 else None


def _give(graph: ir.Graph, node: ir.Node, position: int, array: NDArray[np.float32]) -> None:
    """Make a constant the node's input, under its old name where no other node reads that."""
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    old = node.inputs[position]
    alone = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
    if old is not None and alone:
        name, _ = old.name, graph.initializers.pop(str(old.name))
    else:
        stem = node.outputs[0].name if old is None else f"{old.name}@{node.outputs[0].name}"
        name = f"{stem}.folded"
    tensor = ir.tensor(array, name=name)
    held = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    node.replace_input_with(position, held)
    graph.register_initializer(held)


def _take_out(graph: ir.Graph, step: ir.Node) -> None:
    """Let what a node reads take its output's place and name."""
    out = step.outputs[0]
    source = next(value for value in step.inputs if value is not None and _floats(value) is None)
    out.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(step, safe=True)
    source.name, out.name = out.name, None
