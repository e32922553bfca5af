"""The operations of a ``.tflite`` file: what they are, what they cost, and which of them run in int8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from penjing.export.coexist import entering_tensorflow, quiet_tf

with entering_tensorflow(), quiet_tf():
    from tensorflow.lite.python import schema_py_generated as schema

MOVES = frozenset(
    (
        *("BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "MAX_POOL_2D"),
        *("MIRROR_PAD", "PACK", "PAD", "PADV2", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SLICE"),
        *("SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK"),
    )
)
"""Operations that choose among values: int8 costs them nothing, and they follow their neighbours."""

CASTS = frozenset(("QUANTIZE", "DEQUANTIZE"))
CONVOLUTIONS = frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE"))

_Shape = Sequence[int]
_MACS: Mapping[str, Callable[[Sequence[_Shape], _Shape], int]] = {
    # filter (out, height, width, in of the group)
    "CONV_2D": lambda given, out: prod(out) * prod(given[1][1:]),
    # filter (1, height, width, out)
    "DEPTHWISE_CONV_2D": lambda given, out: prod(out) * prod(given[1][1:3]),
    # filter (depth, height, width, in, out)
    "CONV_3D": lambda given, out: prod(out) * prod(given[1][:4]),
    # inputs: output shape, filter (out, height, width, in), image
    "TRANSPOSE_CONV": lambda given, out: prod(given[2]) * prod(given[1][:3]),
    # filter (depth, height, width, out, in)
    "CONV_3D_TRANSPOSE": lambda given, out: prod(given[2]) * prod(given[1][:4]),
    # weights (out, in)
    "FULLY_CONNECTED": lambda given, out: prod(out) * given[1][-1],
    "BATCH_MATMUL": lambda given, out: prod(out) * given[0][-1],
}


@dataclass(frozen=True)
class Operation:
    """One operation of the main graph.

    Attributes:
        kind: Operator, as LiteRT's schema calls it.
        name: What the quantizer calls it: the names of its outputs.
        inputs: Numbers of its input tensors.
        outputs: Numbers of its output tensors.
        macs: Multiplications for one sample, of convolutions and matrix products.
        dtype: LiteRT's name for the type of its first output.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name.split(';')[0]}"


def operations(content: bytes) -> list[Operation]:
    """The operations of the main graph, in the order in which they run."""
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    kinds, types = _names(schema.BuiltinOperator), _names(schema.TensorType)
    found = []
    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = tuple(operator.Inputs(i) for i in range(operator.InputsLength()))
        outputs = tuple(operator.Outputs(i) for i in range(operator.OutputsLength()))
        tensors = [graph.Tensors(i) for i in outputs]
        name = ";".join(tensor.Name().decode() for tensor in tensors)
        macs = 0
        if kind in _MACS:
            shapes = [_shape(graph.Tensors(i)) if i >= 0 else () for i in inputs]
            macs = _MACS[kind](shapes, _shape(tensors[0]))
        found.append(
            Operation(kind, name, inputs, outputs, int(macs), types[tensors[0].Type()] if tensors else "")
        )
    return found


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.Shape(i) for i in range(tensor.ShapeLength()))


@cache
def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


@dataclass(frozen=True)
class Census:
    """How much of a file runs in int8.

    Attributes:
        convolutions: Convolutions.
        int8_convolutions: Those with int8 kernels.
        int8_macs: Share of the multiplications in int8 kernels.
        floats: Operations in float by kind; those that only move values are not counted.
    """

    convolutions: int
    int8_convolutions: int
    int8_macs: float
    floats: dict[str, int]


def census(content: bytes) -> Census:
    """Count what runs in int8 and in float."""
    found = operations(content)
    convolutions = [op for op in found if op.kind in CONVOLUTIONS]
    macs = sum(op.macs for op in found)
    return Census(
        len(convolutions),
        sum(op.dtype == "INT8" for op in convolutions),
        sum(op.macs for op in found if op.dtype == "INT8") / macs if macs else 1.0,
        dict(Counter(op.kind for op in found if op.dtype == "FLOAT32" and op.kind not in MOVES | CASTS)),
    )
