"""Discrete Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from penjing.export.onnx_fourier import frame_length, transform
from penjing.models.onnx_ops.node import Node, Value, op


@op("DFT")
def _dft(node: Node) -> Value:
    """Along one axis of ``[…, n, …, 1 or 2]``, real or complex."""
    x, asked = node.x(0), transform(node)
    if asked.inverse and asked.onesided:
        real: Tensor = torch.fft.irfft(_joined(x), asked.length, asked.axis)
        return real.unsqueeze(-1)
    if asked.onesided:
        return torch.view_as_real(torch.fft.rfft(x[..., 0], asked.length, asked.axis))
    either = torch.fft.ifft if asked.inverse else torch.fft.fft
    return torch.view_as_real(either(_joined(x), asked.length, asked.axis))


def _joined(x: Tensor) -> Tensor:
    """Real and imaginary parts as complex numbers."""
    return torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))


@op("STFT")
def _stft(node: Node) -> Value:
    """Of ``[batch, samples, 1 or 2]``, frame by frame, nothing padded."""
    x, step = node.x(0), int(node.static(1, "frame_step").item())
    window = node.optional(2)
    length = frame_length(node, window)
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
