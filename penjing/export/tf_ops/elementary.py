"""Elementary functions that LiteRT has no kernel for, by those that it has."""

from __future__ import annotations

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.value import Tensor

_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip
_ERF_END = 3.832506856900711
"""From here on it is one in float32."""


def acos(x: Tensor) -> Tensor:
    """The angle whose cosine is ``x``."""
    return tf.atan2(tf.sqrt((1.0 - x) * (1.0 + x)), x)


def acosh(x: Tensor) -> Tensor:
    """For ``x`` of one and more."""
    return tf.math.log(x + tf.sqrt(x - 1.0) * tf.sqrt(x + 1.0))


def asin(x: Tensor) -> Tensor:
    """The angle whose sine is ``x``."""
    return tf.atan2(x, tf.sqrt((1.0 - x) * (1.0 + x)))


def asinh(x: Tensor) -> Tensor:
    """Odd, so that nothing cancels out for large negative ``x``."""
    return tf.sign(x) * tf.math.log(tf.abs(x) + tf.sqrt(tf.square(x) + 1.0))


def atan(x: Tensor) -> Tensor:
    """LiteRT has the one of two operands."""
    return tf.atan2(x, tf.ones_like(x))


def atanh(x: Tensor) -> Tensor:
    """For ``|x|`` below one."""
    return 0.5 * (tf.math.log(1.0 + x) - tf.math.log(1.0 - x))


def cosh(x: Tensor) -> Tensor:
    """The mean of both exponentials."""
    return 0.5 * tf.exp(x) + 0.5 * tf.exp(-x)


def sinh(x: Tensor) -> Tensor:
    """Half the difference of both exponentials."""
    return 0.5 * tf.exp(x) - 0.5 * tf.exp(-x)


def tan(x: Tensor) -> Tensor:
    """Sine over cosine."""
    return tf.sin(x) / tf.cos(x)


def erf(x: Tensor) -> Tensor:
    """A quotient of polynomials, exact to float32's last digits (the one of Eigen and XLA)."""
    if x.dtype != tf.float32:
        return tf.math.erf(x)
    x = tf.clip_by_value(x, -_ERF_END, _ERF_END)
    square = tf.square(x)
    p, q = (tf.math.polyval([tf.constant(c) for c in row], square) for row in (_ERF_P, _ERF_Q))
    return x * p / q


def remainder(a: Tensor, b: Tensor) -> Tensor:
    """Of a division that truncates towards zero: it has the sign of ``a``."""
    if a.dtype.is_unsigned:
        return tf.math.floormod(a, b)
    return tf.sign(a) * tf.math.floormod(tf.abs(a), tf.abs(b))


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """Of integers, truncated towards zero."""
    if a.dtype.is_unsigned:
        return tf.math.floordiv(a, b)
    return tf.sign(a) * tf.sign(b) * tf.math.floordiv(tf.abs(a), tf.abs(b))
