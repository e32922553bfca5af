"""Discrete Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, op


@op("DFT")
def _dft(node: Node) -> Value:
    """Along one axis of ``[…, n, …, 1 or 2]``, real or complex."""
    x = node.x(0)
    usual = -2 if node.opset >= 20 else 1
    axis = int(node.static(2, "axis").item()) if node.has(2) else int(node.attr("axis", usual))
    axis = axis % x.ndim
    length = int(node.static(1, "dft_length").item()) if node.has(1) else None
    inverse, onesided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(_joined(x), length, axis)
        return real.unsqueeze(-1)
    if onesided:
        return torch.view_as_real(torch.fft.rfft(x[..., 0], length, axis))
    transform = torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(transform(_joined(x), length, axis))


def _joined(x: Tensor) -> Tensor:
    """Real and imaginary parts as complex numbers."""
    return torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))


@op("STFT")
def _stft(node: Node) -> Value:
    """Of ``[batch, samples, 1 or 2]``, frame by frame, nothing padded."""
    x, step = node.x(0), int(node.static(1, "frame_step").item())
    window = node.optional(2)
    if node.has(3):
        length = int(node.static(3, "frame_length").item())
    elif window is not None:
        length = int(window.shape[0])
    else:
        raise node.error("it says neither window nor frame_length")
    found = torch.stft(
        x[..., 0] if x.shape[-1] == 1 else _joined(x),
        length,
        step,
        window=x.new_ones(length) if window is None else window,
        center=False,
        onesided=bool(node.attr("onesided", 1)),
        return_complex=True,
    )
    return torch.view_as_real(found.transpose(1, 2))
