"""What each op does when its inputs are 8-bit: one row per op. An op without a row stays in float.

The kinds, and what ONNX Runtime's CPU kernels make of them (seen in its optimised graphs):

* ``weighted``: multiplies by a constant weight. ``Conv`` becomes ``QLinearConv`` and must have an 8-bit
  output; ``Gemm`` and ``MatMul`` may give float.
* ``follower``: has an 8-bit kernel when all inputs and the output are 8-bit (``QLinearAdd``…). It never
  starts a chain: on its own it would cost more than it saves.
* ``view``: moves values without changing them, so input and output share scale and zero point.
* ``clamp``: a lower bound at zero that the 8-bit output's saturation performs for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["weighted", "follower", "view", "clamp"]


@dataclass(frozen=True)
class OpRule:
    """How one ONNX op takes part.

    Attributes:
        kind: See the module's text.
        data: Positions of the inputs that carry activations; None means all.
        must_emit: The kernel exists only with an 8-bit output.
        direct: A view written to act on the 8-bit tensor itself, because ONNX Runtime would not move its
            Q/DQ pair across the op.
    """

    kind: Kind
    data: tuple[int, ...] | None = (0,)
    must_emit: bool = False
    direct: bool = False


_WEIGHTED = {
    "Conv": OpRule("weighted", must_emit=True),
    "Gemm": OpRule("weighted"),
    "MatMul": OpRule("weighted"),
}
_FOLLOWERS = {
    op: OpRule("follower", must_emit=True)
    for op in ("GlobalAveragePool", "AveragePool", "LeakyRelu", "Sigmoid")
} | {op: OpRule("follower", data=None, must_emit=True) for op in ("Add", "Mul", "Concat")}
_VIEWS = {
    op: OpRule("view")
    for op in (
        "MaxPool",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "Expand",
        "DepthToSpace",
        "SpaceToDepth",
        "Resize",
    )
} | {op: OpRule("view", direct=True) for op in ("Pad", "Split")}
_CLAMPS = {op: OpRule("clamp") for op in ("Relu", "Clip")}

RULES: dict[str, OpRule] = _WEIGHTED | _FOLLOWERS | _VIEWS | _CLAMPS
"""The table, by ONNX op type."""

WEIGHT_OPS = tuple(_WEIGHTED)
RECURRENT_OPS = ("LSTM", "GRU", "RNN")
"""Layers that read no 8-bit tensors: see `penjing.quantize.apart`."""
