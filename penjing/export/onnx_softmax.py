"""Masked softmax without denormal numbers.

A mask adds −10,000, the lowest float or −∞ to what must not count. Runtimes stop at e⁻⁸⁸ or thereabouts,
a denormal number once it is divided by the sum, and CPUs multiply those ten times slower: in a sentence
transformer's int8 file a third of the time went into padding. Held at 80 below its row's maximum, what is
masked weighs at most e⁻⁸⁰, which float32 still has as a normal number, and nothing else changes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_FLOOR = -80.0
_FIRST_AXES_AS_INPUT = 18  # ReduceMax takes its axes as an attribute before
# what a mask goes through between its constant and the scores
_ON_THE_WAY = frozenset(
    (
        *("Add", "Sub", "Mul", "Where"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not"),
        *("Cast", "ConstantOfShape", "Identity", "Trilu", "Pad", "Concat", "Tile", "Expand"),
        *("Gather", "GatherND", "ScatterND", "Slice"),
        *("Reshape", "Squeeze", "Unsqueeze", "Transpose"),
    )
)


def floor_masked(graph: ir.Graph) -> int:
    """Hold the masked inputs of every float32 softmax at 80 below the largest of their row; how many.

    Args:
        graph: Of opset 13 or later, whose Softmax goes over one axis; changed in place. Values whose type is
            not known count as float32.
    """
    found = [node for node in graph if node.op_type == "Softmax" and _is_masked(node.inputs[0])]
    for softmax in found:
        _hold(graph, softmax)
    return len(found)


def _is_masked(scores: ir.Value | None) -> bool:
    """Whether a constant on the way to the scores takes some of them out of sight."""
    if scores is None or scores.dtype not in (ir.DataType.FLOAT, None):
        return False
    seen: set[int] = set()
    ahead = [scores]
    while ahead:
        value = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        constant = ir.convenience.get_const_tensor(value)
        if constant is not None:
            if constant.dtype is ir.DataType.FLOAT and bool((constant.numpy() < _FLOOR).any()):
                return True
        elif (node := value.producer()) is not None and node.op_type in _ON_THE_WAY:
            ahead += [each for each in node.inputs if each is not None]
    return False


def _hold(graph: ir.Graph, softmax: ir.Node) -> None:
    """Put ``max(x, max over the axis of x − 80)`` in front of a softmax."""
    scores = softmax.inputs[0]
    assert scores is not None
    axes, name = [softmax.attributes.get_int("axis", -1)], softmax.outputs[0].name
    floor = _constant(graph, f"{name}.floor", np.array(_FLOOR, np.float32))
    if graph.opset_imports.get("", 0) < _FIRST_AXES_AS_INPUT:
        largest = ir.node("ReduceMax", [scores], {"keepdims": 1, "axes": axes})
    else:
        largest = ir.node(
            "ReduceMax", [scores, _constant(graph, f"{name}.axis", np.array(axes))], {"keepdims": 1}
        )
    lowest = ir.node("Add", [largest.outputs[0], floor])
    held = ir.node("Max", [scores, lowest.outputs[0]])
    for node, what in zip((largest, lowest, held), ("largest", "lowest", "held"), strict=True):
        node.metadata_props.update(softmax.metadata_props)
        node.outputs[0].name = f"{name}.{what}"
        node.outputs[0].dtype = ir.DataType.FLOAT
    held.outputs[0].shape = scores.shape
    graph.insert_before(softmax, [largest, lowest, held])
    softmax.replace_input_with(0, held.outputs[0])


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of about this name."""
    while name in graph.initializers:
        name += "_"
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
