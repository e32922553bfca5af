"""Floating-point formats in ONNX files: apart from `penjing.floats`, since reading them loads onnx."""

from __future__ import annotations

import onnx
import torch

_IN_ONNX = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


def floats_of_graph(graph: onnx.GraphProto) -> frozenset[torch.dtype]:
    """Those of an ONNX graph's weights; lone numbers are none."""
    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute)
    kinds = {tensor.data_type for tensor in (*graph.initializer, *constants) if tensor.dims}
    return frozenset(dtype for kind, dtype in _IN_ONNX.items() if kind in kinds)
