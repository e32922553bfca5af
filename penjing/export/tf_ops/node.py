"""One ONNX node as the op table sees it: inputs, attributes, and how to make outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penjing.errors import ExportError
from penjing.export.onnx_node import OnnxNode
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.value import Tensor, Value, Weights, to_last
from penjing.table import adder


@dataclass
class Node(OnnxNode[Value]):
    """One ONNX node while it is being translated.

    Attributes:
        out_shapes: What the ONNX graph says about each output's shape (None where it does not).
        weights: The store for variables.
    """

    out_shapes: list[list[int | None] | None]
    weights: Weights | None

    def x(self, index: int = 0) -> Tensor:
        """A required input as a tensor in ONNX order."""
        return self.value(index).plain()

    def optional(self, index: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def static(self, index: int, what: str) -> np.ndarray:
        """The array of an input that must be known when the model is written.

        Raises:
            ExportError: if it is computed from the model's inputs.
        """
        value = self.value(index)
        if value.const is None:
            raise self.error(f"its {what} is computed from the model's inputs")
        return value.const

    def rank(self, index: int = 0) -> int:
        """Number of dimensions of an input.

        Raises:
            ExportError: if it is unknown.
        """
        rank = self.value(index).rank
        if rank is None:
            raise self.error(f"the number of dimensions of its input {index} is unknown")
        return rank

    def error(self, cause: str) -> ExportError:
        """An error that names the op and the node."""
        return ExportError(
            f"ONNX op {self.op} cannot become TensorFlow: {cause}",
            layer=self.name or self.op,
            remedy="Export to ONNX only, or change this layer",
        )


Rule = Callable[[Node], Value | list[Value]]
OPS: dict[str, Rule] = {}
"""The table: ONNX op type → rule."""


op = adder(OPS, "ONNX op ")
"""Decorator: put a rule into the table under these ONNX op types."""


def plain(tensor: Tensor) -> Value:
    """A value in ONNX order."""
    return Value(plain=tensor)


def same_order(like: Value, tensor: Tensor) -> Value:
    """A value held in the order ``like`` is held in."""
    return Value(last=tensor) if like.is_last else Value(plain=tensor)


def held_axis(value: Value, axis: int) -> int:
    """Where ONNX's ``axis`` lies in the tensor as it is held."""
    rank = value.rank
    assert rank is not None
    axis = axis + rank if axis < 0 else axis
    return to_last(rank).index(axis) if value.is_last else axis


def aligned(values: list[Value]) -> tuple[list[Tensor], bool]:
    """Operands of a broadcasting op in one common order, and whether that is channels last."""
    lasts = [v.rank for v in values if v.is_last]
    ranks = [v.rank for v in values]
    if not lasts or any(rank is None or rank > lasts[0] for rank in ranks if lasts[0] is not None):
        return [v.plain() for v in values], False
    rank = lasts[0]
    assert rank is not None
    return [_as_last(v, rank) for v in values], True


def _as_last(value: Value, rank: int) -> Tensor:
    """``value`` broadcast-compatible with a channels-last tensor of ``rank``."""
    own = value.rank
    assert own is not None
    if own == rank:
        return value.last()
    if own == 0:
        return value.plain()
    if value.const is not None:
        wide = value.const.reshape((1,) * (rank - own) + value.const.shape)
        return Value(const=wide, key=f"{value.key}/wide{rank}", weights=value.weights).last()
    tensor = value.plain()
    for _ in range(rank - own):
        tensor = tf.expand_dims(tensor, 0)
    return tf.transpose(tensor, to_last(rank))


def restore(tensors: Tensor, last: bool) -> Value:
    """Wrap the result of an op on `aligned` operands."""
    return Value(last=tensors) if last else Value(plain=tensors)
