"""Indices as ONNX wants them: ``ScatterND`` and ``GatherND`` take 64-bit ones alone, torch others too."""

from __future__ import annotations

import onnx_ir as ir

_INDEXED = ("ScatterND", "GatherND")


def widen_indices(graph: ir.Graph) -> int:
    """Cast the narrow indices of each such node, in place; how many."""
    found = [node for node in graph if node.op_type in _INDEXED and node.inputs[1] is not None]
    narrow = [node for node in found if node.inputs[1].dtype not in (ir.DataType.INT64, None)]  # type: ignore[union-attr]
    for node in narrow:
        cast = ir.node("Cast", [node.inputs[1]], {"to": ir.DataType.INT64})
        cast.outputs[0].dtype = ir.DataType.INT64
        graph.insert_before(node, cast)
        node.replace_input_with(1, cast.outputs[0])
    return len(narrow)
