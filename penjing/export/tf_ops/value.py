"""What flows along an edge of the ONNX graph while it is traced into TensorFlow.

TensorFlow's CPU kernels want channels last, ONNX is channels first. A `Value` remembers in which order its
tensor is held, and gives the other one when asked: between two convolutions nothing is transposed, and an
explicit ``Transpose`` to channels-last order in the ONNX graph costs nothing either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from penjing.export.tf_ops.backend import tf

Tensor = Any
"""A ``tf.Tensor``."""


def to_last(rank: int) -> list[int]:
    """Permutation N, C, spatial… → N, spatial…, C."""
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """Permutation N, spatial…, C → N, C, spatial…."""
    return [0, rank - 1, *range(1, rank - 1)]


class Weights:
    """The variables of the module being built: one for each ONNX initializer and order that it is used in."""

    def __init__(self) -> None:
        self.variables: dict[str, Any] = {}

    def tensor(self, key: str, array: np.ndarray) -> Tensor:
        """``array`` as a variable's tensor (arrays), or as a constant (scalars, shapes and other
        integers)."""
        if array.ndim == 0 or array.size < 2 or array.dtype.kind not in "fiu" or array.dtype.itemsize == 8:
            return tf.constant(array)
        if array.dtype.kind != "f" and array.dtype.itemsize > 1:
            return tf.constant(array)
        if key not in self.variables:
            name = re.sub(r"[^A-Za-z0-9_.\-/]", "_", key).lstrip("_-/") or "weight"
            with tf.init_scope():
                self.variables[key] = tf.Variable(np.ascontiguousarray(array), trainable=False, name=name)
        return tf.convert_to_tensor(self.variables[key])


class Value:
    """One ONNX value: a constant array, or a tensor in ONNX order (`plain`) or with channels last (`last`).

    Attributes:
        const: The array, when it is known now.
        parts: For integer vectors and scalars of shape arithmetic: each element an int or a scalar tensor.
        quantized: For a dequantized constant: its integers, scale and zero point, each of the value's rank.
        non_negative: Whether no element can be below zero (after ReLU): zero padding then equals −∞ for a
            maximum.
    """

    def __init__(
        self,
        *,
        plain: Tensor | None = None,
        last: Tensor | None = None,
        const: np.ndarray | None = None,
        key: str = "",
        weights: Weights | None = None,
        parts: list[Any] | None = None,
        quantized: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self._plain = plain
        self._last = last
        self.const = const
        self.key = key
        self.weights = weights
        self.parts = parts
        self.quantized = quantized
        self.non_negative = False

    @property
    def is_last(self) -> bool:
        """Whether only the channels-last tensor exists, so that using `plain` would cost a transpose."""
        return self._last is not None and self._plain is None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None where TensorFlow does not know it."""
        shape = self._raw_shape()
        return None if shape is None else len(shape)

    @property
    def shape(self) -> list[int | None] | None:
        """Static shape in ONNX order, None for free dimensions; None for an unknown rank."""
        shape = self._raw_shape()
        if shape is None or self.const is not None or self.quantized is not None or self._plain is not None:
            return shape
        if self._last is not None:
            return [shape[i] for i in to_first(len(shape))]
        return shape

    def _raw_shape(self) -> list[int | None] | None:
        if self.const is not None:
            return list(self.const.shape)
        if self.quantized is not None:
            return list(self.quantized[0].shape)
        tensor = self._plain if self._plain is not None else self._last
        if tensor is None:
            return [len(self.parts)] if self.parts is not None else None
        return None if tensor.shape.rank is None else list(tensor.shape.as_list())

    @property
    def dtype(self) -> Any:
        """TensorFlow dtype."""
        return self.tensor().dtype

    def tensor(self) -> Tensor:
        """The tensor in whichever order it is held."""
        return self._last if self.is_last else self.plain()

    def plain(self) -> Tensor:
        """The tensor in ONNX order."""
        if self._plain is None:
            if self.const is not None or self.quantized is not None:
                return self.mapped("", lambda array: array)
            assert self._last is not None
            self._plain = tf.transpose(self._last, to_first(self._last.shape.rank))
        return self._plain

    def last(self) -> Tensor:
        """The tensor with channels last (rank 3 and up)."""
        if self._last is None:
            if self.const is not None or self.quantized is not None:
                rank = len(self.shape or ())
                return self.mapped("last", lambda array: array.transpose(to_last(rank)))
            assert self._plain is not None
            self._last = tf.transpose(self._plain, to_last(self._plain.shape.rank))
        return self._last

    def mapped(self, order: str, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """A constant, reordered by ``change`` once and stored so; a quantized one stays in its integers."""
        key = f"{self.key}/{order}" if order else self.key
        if self.quantized is not None:
            q, scale, zero = (change(part) for part in self.quantized)
            ints = self._stored(f"{key}/int8", q)
            values = tf.cast(ints, tf.float32)
            if np.any(zero):
                values = values - tf.constant(zero.astype(np.float32))
            return values * tf.constant(scale.astype(np.float32))
        assert self.const is not None
        return self._stored(key, change(self.const))

    def _stored(self, key: str, array: np.ndarray) -> Tensor:
        return tf.constant(array) if self.weights is None else self.weights.tensor(key, array)

    def set_shape(self, shape: list[int | None]) -> None:
        """Tell TensorFlow what the ONNX graph knows about the shape (ONNX order)."""
        if self._plain is not None and self._plain.shape.rank in (None, len(shape)):
            self._plain.set_shape(shape)
        if self._last is not None and self._last.shape.rank == len(shape):
            self._last.set_shape([shape[i] for i in to_last(len(shape))])
