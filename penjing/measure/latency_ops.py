"""Single operators as the runtime sees them: a shape to look up, and the small ONNX model that times it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
COMPUTE = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU"}
)
"""Op types whose kernels are timed; what the runtime adds around them (reordering) is not theirs."""


@dataclass(frozen=True)
class OpShape:
    """One call of one operator.

    Attributes:
        op: A name in `BUILDERS`.
        x: Shape of its input.
        w: Shape of its weight, or of its second input.
        options: ``(name, integers)`` in the names of ONNX attributes.
    """

    op: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    options: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def key(self) -> str:
        """Text that names this call in a cache."""
        return json.dumps([self.op, self.x, self.w, self.options], separators=(",", ":"))


def op_model(shape: OpShape) -> onnx.ModelProto:
    """An ONNX model with this operator, a ReLU after it, and random weights."""
    return BUILDERS[shape.op](shape)


def _conv(shape: OpShape, op: str = "Conv") -> onnx.ModelProto:
    options: dict[str, Any] = {name: list(values) for name, values in shape.options}
    options["group"] = options.pop("group", [1])[0]
    channels = shape.w[0] if op == "Conv" else shape.w[1] * options["group"]
    bias = _random("b", (channels,))
    node = helper.make_node(op, ["x", "w", "b"], ["h"], name="op", **options)
    return _model(node, {"x": shape.x}, [_random("w", shape.w), bias])


def _matmul(shape: OpShape) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["h"], name="op")
    return _model(node, {"x": shape.x}, [_random("w", shape.w)])


def _bmm(shape: OpShape) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["h"], name="op")
    return _model(node, {"x": shape.x, "w": shape.w}, [])


BUILDERS: Mapping[str, Callable[[OpShape], onnx.ModelProto]] = {
    "conv": _conv,
    "conv_transpose": lambda shape: _conv(shape, "ConvTranspose"),
    "matmul": _matmul,
    "bmm": _bmm,
}


def _random(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    scale = 1.0 / max(1.0, float(np.prod(shape[1:]))) ** 0.5
    values = np.random.default_rng(0).standard_normal(shape) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def _model(
    node: onnx.NodeProto, inputs: Mapping[str, tuple[int, ...]], weights: list[onnx.TensorProto]
) -> onnx.ModelProto:
    after = helper.make_node("Relu", ["h"], ["y"], name="after")
    graph = helper.make_graph(
        [node, after],
        "op",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
