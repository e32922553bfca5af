"""Fourier transforms mix the slots of the dims they run over; the other dims pass."""

from __future__ import annotations

from penjing.graph.rules.table import Axes, Op, rule


@rule(
    *(
        f"aten.fft_{name}"
        for name in [
            "fft",
            "ifft",
            "rfft",
            "irfft",
            "hfft",
            "ihfft",
            "fft2",
            "ifft2",
            "rfft2",
            "irfft2",
            "fftn",
            "ifftn",
            "rfftn",
            "irfftn",
            "fftshift",
            "ifftshift",
        ]
    )
)
def fft(op: Op) -> Axes:
    """Transformed dims stay whole."""
    x = op.tensors()[0]
    dims = op.args.get("dim")
    over = dims if isinstance(dims, list | tuple) else ([dims] if dims is not None else range(len(x)))
    mixed = {op.dim(dim, len(x)) for dim in over}
    for dim in mixed:
        op.freeze(x[dim], "mixed by a Fourier transform", "spatial")
    return tuple(op.spatial(op.shape[dim]) if dim in mixed else axis for dim, axis in enumerate(x))


def _windows(name: str, rank: int) -> None:
    @rule(name)
    def windows(op: Op) -> Axes:
        """Signals ``[N, time]`` and the spectra of their windows ``[N, frequency, frame]``: N passes."""
        for axes in op.tensors()[1:]:
            for axis in axes:
                op.freeze(axis, "a window of a Fourier transform", "spatial")
        x = op.axes(op.args["self"])
        batch = x[:-rank]
        for axis in x[-rank:]:
            op.freeze(axis, "mixed by a Fourier transform", "spatial")
        return (*batch, *(op.spatial(size) for size in op.shape[len(batch) :]))


_windows("aten.stft", 1)
_windows("aten.istft", 2)


@rule("aten.view_as_complex")
def view_as_complex(op: Op) -> Axes:
    """The last dim holds real and imaginary parts."""
    x = op.tensors()[0]
    op.freeze(x[-1], "real and imaginary parts")
    return x[:-1]


@rule("aten.view_as_real")
def view_as_real(op: Op) -> Axes:
    """A last dim for real and imaginary parts."""
    return (*op.tensors()[0], op.fixed(2, "real and imaginary parts"))


@rule("aten.complex", "aten.polar")
def pair(op: Op) -> Axes:
    """Two aligned real tensors."""
    return op.broadcast(*op.tensors())
