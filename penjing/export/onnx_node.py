"""What every reader of ONNX nodes needs, whatever it makes of them: attributes, optional inputs, padding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from penjing.errors import PenjingError

Operand = TypeVar("Operand")
STANDARD = ("", "ai.onnx")
"""Names of the standard op set's domain."""


@dataclass
class OnnxNode(ABC, Generic[Operand]):
    """One ONNX node while it is being translated.

    Attributes:
        op: ONNX op type.
        name: Node name, for errors.
        inputs: Operands in ONNX's order; None for an input left out.
        attributes: Attribute values by name, as Python and NumPy objects.
        opset: Version of the op set.
        num_outputs: How many outputs the graph uses.
    """

    op: str
    name: str
    inputs: list[Operand | None]
    attributes: Mapping[str, Any]
    opset: int
    num_outputs: int

    @abstractmethod
    def static(self, index: int, what: str) -> np.ndarray:
        """The array of an input that must be known while translating.

        Raises:
            PenjingError: if it is computed from the model's inputs.
        """

    @abstractmethod
    def rank(self, index: int = 0) -> int:
        """Number of dimensions of an input."""

    @abstractmethod
    def error(self, cause: str) -> PenjingError:
        """An error that names the op and the node."""

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return self.attributes.get(name, default)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        given = self.attr(name, default)
        return str(given.decode() if isinstance(given, bytes) else given)

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int = 0) -> Operand:
        """A required input."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise self.error(f"its input {index} is missing")
        return value

    def ints(self, attribute: str, index: int) -> list[int] | None:
        """A list that older op sets give as an attribute and newer ones as an input; None if left out."""
        if attribute in self.attributes:
            given = self.attributes[attribute]
            return [int(i) for i in np.atleast_1d(given)]
        if not self.has(index):
            return None
        return [self.integer(i) for i in np.atleast_1d(self.static(index, attribute))]

    def integer(self, value: Any) -> int:
        """One entry of such a list."""
        return int(value)

    def axis(self, default: int, *, rank: int | None = None) -> int:
        """The ``axis`` attribute, counted from the front."""
        rank = self.rank() if rank is None else rank
        axis = int(self.attr("axis", default))
        return axis + rank if axis < 0 else axis


def attribute(proto: onnx.AttributeProto) -> Any:
    """An attribute as a Python object; a tensor as an array."""
    value = onnx.helper.get_attribute_value(proto)
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def standard_opset(model: onnx.ModelProto) -> int:
    """Version of the standard op set that the model uses."""
    return next((o.version for o in model.opset_import if o.domain in STANDARD), 1)


def spatial_pads(
    node: OnnxNode[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    sizes: Sequence[int | None],
) -> list[tuple[int, int]]:
    """Zeros before and after each spatial dimension, from ``pads`` or ``auto_pad``."""
    auto = node.text("auto_pad", "NOTSET")
    count = len(kernel)
    if auto in ("NOTSET", ""):
        pads = [int(p) for p in node.attr("pads", [0] * (2 * count))]
        return [(pads[i], pads[i + count]) for i in range(count)]
    if auto == "VALID":
        return [(0, 0)] * count
    out = []
    for k, s, d, size in zip(kernel, strides, dilations, sizes, strict=True):
        if size is None:
            raise node.error("auto_pad needs a fixed image size")
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        out.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return out


def transpose_crops(
    node: OnnxNode[Any], full: Sequence[Any], extra: Sequence[int], sizes: Sequence[Any], strides: list[int]
) -> list[tuple[int, int]]:
    """What ``pads`` (or the wished ``output_shape``) of a ConvTranspose cuts from either end of the full
    result; sizes that are free are no integers, and only ``pads`` can do without them."""
    wished = node.attr("output_shape")
    auto = node.text("auto_pad", "NOTSET")
    if wished is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wished = [n * s for n, s in zip(sizes, strides, strict=True)]
    if wished is not None and not all(isinstance(n, int) for n in sizes):
        raise node.error("auto_pad and output_shape need a fixed image size")
    if wished is not None:
        totals = [n + e - int(w) for n, e, w in zip(full, extra, wished[-len(full) :], strict=True)]
        # SAME_UPPER leaves the larger cut at the end, anything else at the start (ONNX ConvTranspose).
        return [(t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
    pads = [int(p) for p in node.attr("pads", [0] * (2 * len(full)))]
    return [(pads[i], pads[i + len(full)]) for i in range(len(full))]


class Window:
    """Kernel, strides, dilations and pads of a pooling node.

    Args:
        node: The node.
        sizes: Its input's spatial sizes; None where free.

    Attributes:
        ceil: What ``ceil_mode`` reads beyond the pads, by dimension.
    """

    def __init__(self, node: OnnxNode[Any], sizes: Sequence[int | None] | None) -> None:
        self._node = node
        self.kernel = [int(k) for k in node.attr("kernel_shape")]
        count = len(self.kernel)
        self.strides = [int(s) for s in node.attr("strides", [1] * count)]
        self.dilations = [int(d) for d in node.attr("dilations", [1] * count)]
        self.sizes = [None] * count if sizes is None else list(sizes)
        self.pads = spatial_pads(node, self.kernel, self.strides, self.dilations, self.sizes)
        self.ceil = [0] * count
        if node.attr("ceil_mode", 0):
            for i, size in enumerate(self.sizes):
                if size is None:
                    raise node.error("ceil_mode needs a fixed image size")
                self.ceil[i] = self._beyond(i, size)

    def _beyond(self, i: int, size: int) -> int:
        (before, after), stride = self.pads[i], self.strides[i]
        span = (self.kernel[i] - 1) * self.dilations[i] + 1
        steps = -(-(size + before + after - span) // stride)
        if steps * stride >= size + before:  # a window must start inside the image or its left padding
            steps -= 1
        return int(max(steps * stride + span - (size + before + after), 0))

    @property
    def all_pads(self) -> list[tuple[int, int]]:
        """Pads with what ``ceil_mode`` adds."""
        return [(b, a + c) for (b, a), c in zip(self.pads, self.ceil, strict=True)]

    def counted(self, count_pads: bool) -> np.ndarray | None:
        """Kernel size over the number of elements that count in an average, for each output position
        (spatial dimensions only); None when it is 1 everywhere."""
        if count_pads and not any(self.ceil):
            return None
        factor = np.ones(())
        for i, size in enumerate(self.sizes):
            if size is None:
                raise self._node.error("averages that leave out the padding need a fixed image size")
            before, after = self.pads[i]
            line = np.zeros(size + before + after + self.ceil[i])
            line[slice(0, size + before + after) if count_pads else slice(before, before + size)] = 1.0
            span = (self.kernel[i] - 1) * self.dilations[i] + 1
            starts = range(0, len(line) - span + 1, self.strides[i])
            counts = np.array([line[s : s + span : self.dilations[i]].sum() for s in starts])
            factor = factor[..., None] * (self.kernel[i] / counts)
        return factor.astype(np.float32)
