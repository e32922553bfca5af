"""Outputs whose smallest digits are the runtime's, not the model's.

ONNX Runtime 1.32 computes a sigmoid to 1.4e-7 of 1, whatever its result: at −10 that is a relative 0.2%. Its
softmax, tanh and exponential keep their relative accuracy (4e-6, 3e-7, 6e-8). So only outputs that a sigmoid
reaches may be compared on an absolute scale.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from penjing.export.inputs import identifier

_KEEPS = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Max", "Pad", "ReduceMax", "ReduceMean"}
    | {"Reshape", "Resize", "Slice", "Split", "Squeeze", "TopK", "Transpose", "Unsqueeze"}
)
"""Ops that leave probabilities where they are, pick among them or average them."""


def sigmoid_outputs(path: Path) -> frozenset[str]:
    """Names (as TensorFlow spells them) of an ONNX file's outputs that a sigmoid reaches unprocessed."""
    graph = onnx.load(str(path), load_external_data=False).graph
    reached: set[str] = set()
    for node in graph.node:
        if node.op_type == "Sigmoid" or (node.op_type in _KEEPS and reached.intersection(node.input)):
            reached.update(node.output)
    return frozenset(identifier(output.name) for output in graph.output if output.name in reached)
