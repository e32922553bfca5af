"""Discrete Fourier transforms, as products with constant matrices: LiteRT has hardly any of its own."""

from __future__ import annotations

import numpy as np

from penjing.export.onnx_fourier import frame_length, transform
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op, plain
from penjing.export.tf_ops.value import Value


@op("DFT")
def _dft(node: Node) -> Value:
    """Along one axis of ``[…, n, …, 1 or 2]``, real or complex, in ``O(n²)``."""
    x, rank, asked = node.x(0), node.rank(), transform(node)
    axis, sizes = asked.axis, x.shape.as_list()
    size, channels = sizes[axis], sizes[-1]
    if size is None:
        raise node.error("the length of what it transforms is computed from the model's inputs")
    halves = asked.inverse and asked.onesided
    length = asked.length if asked.length is not None else 2 * (size - 1) if halves else size
    waves = _half_waves(length) if halves else _waves(length, inverse=asked.inverse)
    if asked.onesided and not asked.inverse:
        waves = waves[:, :, : length // 2 + 1]
    used = min(size, len(waves))
    out = tf.tensordot(
        x if used == size else tf.gather(x, range(used), axis=axis),
        tf.constant(waves[:used, :channels], x.dtype),
        [[axis, rank - 1], [0, 1]],
    )  # […, frequencies, 1 or 2]
    order = [*range(axis), rank - 2, *range(axis, rank - 2), rank - 1]
    return plain(out if axis == rank - 2 else tf.transpose(out, order))


def _waves(length: int, *, inverse: bool = False) -> np.ndarray:
    """What each number ``[n, re or im]`` gives to each frequency ``[k, re or im]``: ``exp(∓2πikn/N)``."""
    turns = np.outer(np.arange(length), np.arange(length)) % length  # exact, however large
    wave = np.exp((2j if inverse else -2j) * np.pi * turns / length) / (length if inverse else 1)
    return np.stack([_pair(wave), _pair(1j * wave)], 1)


def _half_waves(length: int) -> np.ndarray:
    """What each frequency ``[k, re or im]`` of one half, whose other half is its conjugate, gives to the real
    number ``[n, 1]``.
    """
    half = length // 2 + 1
    twice = np.full((half, 1, 1, 1), 2.0)
    twice[0] = 1.0
    if length % 2 == 0:
        twice[-1] = 1.0
    return np.asarray(twice * _waves(length, inverse=True)[:half, :, :, :1])


def _pair(value: np.ndarray) -> np.ndarray:
    return np.stack([value.real, value.imag], -1)


@op("STFT")
def _stft(node: Node) -> Value:
    """Of ``[batch, samples, 1 or 2]``, as a convolution with windowed waves."""
    x, step = node.x(0), int(node.static(1, "frame_step").item())
    window = node.static(2, "window") if node.has(2) else None
    length = frame_length(node, window)
    waves = _waves(length)[:, : x.shape[-1]]
    if node.attr("onesided", 1):
        waves = waves[:, :, : length // 2 + 1]
    if window is not None:
        waves = waves * window[:, None, None, None]
    bins = waves.shape[2]
    kernel = tf.constant(waves.reshape(length, -1, 2 * bins), x.dtype)
    out = tf.nn.conv1d(x, kernel, step, "VALID")
    frames = out.shape[1] if out.shape[1] is not None else tf.shape(out)[1]
    return plain(tf.reshape(out, [-1, frames, bins, 2]))
