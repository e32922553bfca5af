"""What nodes of Fourier transforms ask for, whatever they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penjing.export.onnx_node import OnnxNode


@dataclass(frozen=True)
class Transform:
    """A DFT along one axis of ``[…, n, …, 1 or 2]``.

    Attributes:
        axis: Counted from the front.
        length: Of the transform; None where it is that of the axis.
        inverse: Whether it leads back.
        onesided: Whether the half whose other half is its conjugate stands for the whole.
    """

    axis: int
    length: int | None
    inverse: bool
    onesided: bool


def transform(node: OnnxNode[Any]) -> Transform:
    """Of a DFT node: up to op set 19 the axis is an attribute."""
    usual = -2 if node.opset >= 20 else 1
    axis = int(node.static(2, "axis").item()) if node.has(2) else int(node.attr("axis", usual))
    length = int(node.static(1, "dft_length").item()) if node.has(1) else None
    return Transform(
        axis % node.rank(), length, bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    )


def frame_length(node: OnnxNode[Any], window: Any) -> int:
    """Samples of a frame of an STFT node, from that input or from the window.

    Raises:
        PenjingError: where it says neither.
    """
    if node.has(3):
        return int(node.static(3, "frame_length").item())
    if window is None:
        raise node.error("it says neither window nor frame_length")
    return int(window.shape[0])
