"""Which arrays of an ONNX file become parameters, which buffers, and under what names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from penjing.graph.tree import Held, attach
from penjing.models.onnx_ops.node import array_tensor
from penjing.models.onnx_read import Body, Step

_KEPT_AS_NUMBERS = 16
"""Constants of other than float type with at most so many elements are no buffers."""

STATIC: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "QuantizeLinear": (1, 2),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Upsample": (1,),
}
"""Op → its inputs that say how to compute, and are never trained."""
STATISTICS: dict[str, tuple[int, ...]] = {"BatchNormalization": (3, 4)}
"""Op → its inputs that training updates by itself: buffers."""
WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gemm": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RNN": (1, 2, 3),
}
"""Op → its inputs that are weights even when they hold a single number."""


@dataclass(frozen=True)
class Stored:
    """Where a constant is: a parameter or buffer of the module (``path``), and its array where that cannot
    change."""

    path: str | None
    array: np.ndarray | None


def store(module: nn.Module, body: Body, outputs: Sequence[str]) -> dict[str, Stored]:
    """Register the constants that the graph reads, and return where each one is, by ONNX name."""
    uses: dict[str, list[tuple[str, int]]] = {name: [("", 0)] for name in outputs}
    constants: dict[str, np.ndarray] = {}
    weights: set[str] = set()
    for step, scope in _steps(body):
        for index, name in enumerate(step.inputs):
            uses.setdefault(name, []).append((step.op, index))
        constants |= scope.constants
        weights |= scope.weights
    constants |= body.constants
    for scope in _bodies(body):
        for name in scope.outputs:
            uses.setdefault(name, []).append(("", 0))
    names = _Names(module)
    stored = {}
    for name, array in constants.items():
        if name not in uses:
            continue
        kind = _kind(array, uses[name], name in weights)
        if kind == "number":
            stored[name] = Stored(None, array)
            continue
        path = names.safe(name)
        tensor: Tensor = array_tensor(array)
        fixed = None
        if kind == "parameter":
            tensor = nn.Parameter(tensor)
        elif not any(index in STATISTICS.get(op, ()) for op, index in uses[name]):
            fixed = array
        attach(module, Held(path, tensor))
        stored[name] = Stored(path, fixed)
    return stored


def _bodies(body: Body) -> Iterator[Body]:
    yield body
    for inner in body.inner():
        yield from _bodies(inner)


def _steps(body: Body) -> Iterator[tuple[Step, Body]]:
    for scope in _bodies(body):
        for step in scope.steps:
            yield step, scope


def _kind(array: np.ndarray, uses: list[tuple[str, int]], is_weight: bool) -> str:
    """``"parameter"``, ``"buffer"`` or ``"number"``."""

    def read_as(table: dict[str, tuple[int, ...]]) -> bool:
        return any(index in table.get(op, ()) for op, index in uses)

    if all(index in STATIC.get(op, ()) for op, index in uses):
        return "number"
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        return "buffer" if array.size > _KEPT_AS_NUMBERS else "number"
    if read_as(STATISTICS):
        return "buffer"
    if is_weight and read_as(WEIGHTS):
        return "parameter"
    if array.size <= 1:
        return "number"
    # masks hold -inf, which no training may touch
    finite = bool(np.isfinite(array.astype(np.float32)).all())
    return "parameter" if is_weight and finite else "buffer"


class _Names:
    """ONNX names as dotted attribute names: unique, and none that a module already has."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._leaves: set[str] = set()
        self._folders: set[str] = set()

    def safe(self, name: str) -> str:
        """The name under which a constant is registered."""
        parts = [re.sub(r"\W", "_", part, flags=re.ASCII) or "_" for part in name.split(".")]
        parts = [part + "_" if hasattr(nn.Module, part) else part for part in parts]
        if hasattr(type(self._module), parts[0]) or parts[0] in vars(self._module):
            parts[0] += "_"
        path = ".".join(parts)
        if self._taken(path):
            path = "_".join(parts)
        unique, count = path, 1
        while self._taken(unique):
            count += 1
            unique = f"{path}_{count}"
        self._leaves.add(unique)
        pieces = unique.split(".")
        self._folders |= {".".join(pieces[:i]) for i in range(1, len(pieces))}
        return unique

    def _taken(self, path: str) -> bool:
        pieces = path.split(".")
        inside = any(".".join(pieces[:i]) in self._leaves for i in range(1, len(pieces)))
        return path in self._leaves or path in self._folders or inside
