"""One ONNX node as torch's op table sees it.

Two kinds of values flow along the edges: tensors, and *host* values: NumPy arrays of sizes, axes and other
constants. Ops on host values alone run in NumPy, so a ``Shape → Gather → Concat → Reshape`` chain never
becomes a tensor. While ``torch.export`` traces, a host array of dtype object holds symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from penjing.errors import ArtifactError
from penjing.export.onnx_node import OnnxNode
from penjing.table import adder

Value = Tensor | np.ndarray
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass
class Node(OnnxNode[Value]):
    """One ONNX node while it runs.

    Attributes:
        known: The arrays of inputs that are constants held as buffers; None for the others.
        training: Whether the model trains.
        device: Where tensors made from nothing belong.
        run_body: Runs a subgraph attribute in this node's scope.
    """

    known: list[np.ndarray | None]
    training: bool
    device: torch.device
    run_body: Callable[[Any], list[Value]] | None = None

    def x(self, index: int = 0) -> Tensor:
        """A required input as a tensor."""
        return as_tensor(self.value(index), self.device)

    def optional(self, index: int) -> Tensor | None:
        """An input that may be left out, as a tensor."""
        return self.x(index) if self.has(index) else None

    def host(self, index: int) -> np.ndarray | None:
        """An input's array, where it is known without running the model; else None."""
        value = self.value(index)
        return value if isinstance(value, np.ndarray) else self.known[index]

    def static(self, index: int, what: str) -> np.ndarray:
        """An input that torch wants as plain numbers."""
        found = self.host(index)
        if found is not None:
            return found
        if torch.compiler.is_exporting():
            raise self.error(f"its {what} is computed from the values of the model's inputs")
        return np.asarray(self.x(index).detach().cpu().numpy())

    def integer(self, value: Any) -> int:
        """An entry of a list; symbolic sizes stay symbolic."""
        return cast(int, value) if isinstance(value, torch.SymInt) else int(value)

    def number(self, attribute: str, index: int, default: Any = None) -> Any:
        """A number that older op sets give as an attribute and newer ones as an input."""
        if attribute in self.attributes:
            return self.attributes[attribute]
        return self.static(index, attribute).reshape(-1)[0].item() if self.has(index) else default

    def rank(self, index: int = 0) -> int:
        """Number of dimensions of an input."""
        return self.value(index).ndim

    def error(self, cause: str) -> ArtifactError:
        """An error that names the op and the node."""
        return ArtifactError(
            f"ONNX op {self.op} cannot run in torch: {cause}",
            layer=self.name or self.op,
            remedy="Give the model it was exported from, or export it without this op",
        )


Result = Value | list[Value]
Rule = Callable[[Node], Result]
HostRule = Callable[[Node, list[np.ndarray]], Any]
OPS: dict[str, Rule] = {}
"""The table: ONNX op type → torch rule."""
HOST: dict[str, HostRule] = {}
"""ONNX op type → NumPy rule, for inputs that are all host values. ``NotImplemented`` leaves it to torch."""


op = adder(OPS, "ONNX op ")
"""Decorator: put a torch rule into the table under these ONNX op types."""
host = adder(HOST, "ONNX op ")
"""Decorator: put a NumPy rule into the table of host values."""


def is_symbolic(array: np.ndarray) -> bool:
    """Whether a host value holds symbolic sizes."""
    return array.dtype == object


def host_array(values: Any, *, dtype: Any = np.int64) -> np.ndarray:
    """A host value from numbers and symbolic sizes (a scalar, or a list)."""
    flat = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(value, SYMBOLIC) for value in flat):
        # filled one by one: NumPy would ask a symbolic size for its value, which fixes it
        array = np.empty(len(flat), object)
        for i, value in enumerate(flat):
            array[i] = value
    else:
        array = np.array(flat, dtype)
    return array if isinstance(values, list | tuple) else array.reshape(())


def as_tensor(value: Value, device: torch.device | None = None) -> Tensor:
    """A tensor from either kind of value."""
    if isinstance(value, Tensor):
        return value
    if not is_symbolic(value):
        return array_tensor(value).to(device)
    parts = [torch.scalar_tensor(part, dtype=torch.int64, device=device) for part in value.reshape(-1)]
    return torch.stack(parts).reshape(value.shape)


def array_tensor(array: np.ndarray) -> Tensor:
    """A tensor holding a copy of an array; bfloat16 and other small floats, which torch does not read, are
    widened on the way."""
    try:
        return torch.tensor(array)
    except TypeError:
        kind = {"bfloat16": torch.bfloat16}.get(array.dtype.name, torch.float32)
        return torch.tensor(array.astype(np.float32)).to(kind)


def scalar(node: Node, index: int) -> Any:
    """An input that is one known number, as a Python number, if that gives the same shape; else None."""
    value = node.inputs[index]
    if not isinstance(value, np.ndarray) or value.size != 1:
        return None
    others = [v.ndim for i, v in enumerate(node.inputs) if i != index and isinstance(v, Tensor)]
    if not others or value.ndim > max(others):
        return None
    item = value.reshape(-1)[0]
    return item if isinstance(item, SYMBOLIC) else item.item()


DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""``TensorProto.DataType`` → torch."""


def dtype_of(node: Node, code: int) -> torch.dtype:
    """The torch type of an ONNX type code."""
    if code not in DTYPES:
        raise node.error(f"torch has no element type {code}")
    return DTYPES[code]
