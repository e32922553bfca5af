"""Streaming second moments of what a layer reads and what it should give.

Everything a least-squares refit needs is in the sums of ``x``, ``r``, ``x xᵀ`` and ``r xᵀ``: their size is
set by the layer, not by the number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EXACT_FEATURES = 768
"""Products in float64 up to this many features; beyond it, products in float32 are added up in float64."""


class Moments:
    """Sums over rows of pairs (input row, residual row), in float64, for ``g`` independent groups of
    channels.

    Attributes:
        count: Rows seen.
        x_GF: Sum of the input rows.
        r_GO: Sum of the residual rows.
        xx_GFF: Sum of ``x xᵀ``.
        rx_GOF: Sum of ``r xᵀ``.
        rr_GO: Sum of the squares of the residual.
    """

    def __init__(self, groups: int, features: int, outputs: int, *, exact: bool = True) -> None:
        self.count = 0
        # products of many rows are made in this type and added up in float64
        self._product = torch.float64 if exact else torch.float32
        self.x_GF = _zeros(groups, features)
        self.r_GO = _zeros(groups, outputs)
        self.xx_GFF = _zeros(groups, features, features)
        self.rx_GOF = _zeros(groups, outputs, features)
        self.rr_GO = _zeros(groups, outputs)

    def add(self, x_GRF: Tensor, r_GRO: Tensor) -> None:
        """Add rows: inputs ``[groups, rows, features]`` and residuals ``[groups, rows, outputs]``."""
        x, r = x_GRF.to(self._product), r_GRO.to(self._product)
        self.count += x.shape[1]
        self.x_GF += x.sum(1, dtype=torch.float64)
        self.r_GO += r.sum(1, dtype=torch.float64)
        self.xx_GFF += x.transpose(1, 2) @ x
        self.rx_GOF += r.transpose(1, 2) @ x
        self.rr_GO += r.square().sum(1, dtype=torch.float64)

    def centred(self, intercept: bool) -> Centred:
        """Means, covariances, the residual's variance; without an intercept, about zero, not the mean."""
        n = max(self.count, 1)
        x_GF, r_GO = self.x_GF / n, self.r_GO / n
        if not intercept:
            x_GF, r_GO = torch.zeros_like(x_GF), torch.zeros_like(r_GO)
        return Centred(
            x_GF,
            r_GO,
            self.xx_GFF / n - x_GF[:, :, None] * x_GF[:, None, :],
            self.rx_GOF / n - r_GO[:, :, None] * x_GF[:, None, :],
            self.rr_GO / n - r_GO.square(),
        )

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows together."""
        groups, outputs, features = self.rx_GOF.shape
        total = Moments(groups, features, outputs)
        total.count = self.count + other.count
        for name in ("x_GF", "r_GO", "xx_GFF", "rx_GOF", "rr_GO"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@dataclass(frozen=True)
class Centred:
    """Means and central second moments; see `Moments`."""

    x_GF: Tensor
    r_GO: Tensor
    cov_xx_GFF: Tensor
    cov_rx_GOF: Tensor
    var_r_GO: Tensor

    def solve(self, ridge: float) -> Tensor:
        """The change of weights ``[G, O, F]`` that minimises ``E‖r - ΔW x‖² + ridge · mean(var x) ‖ΔW‖²``."""
        change_GFO: Tensor = torch.cholesky_solve(self.cov_rx_GOF.transpose(1, 2), self.factor(ridge))
        return change_GFO.transpose(1, 2)

    def factor(self, ridge: float) -> Tensor:
        """Cholesky factor ``[G, F, F]`` of the inputs' covariance with this ridge."""
        scale_G = self.cov_xx_GFF.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        damped = self.cov_xx_GFF.clone()
        damped.diagonal(dim1=1, dim2=2).add_((ridge * scale_G)[:, None])
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(damped)
        if bool(
            (failed > 0).any()
        ):  # the ridge is below rounding error for this input: raise it to what is not
            damped.diagonal(dim1=1, dim2=2).add_((1e-8 * scale_G)[:, None])
            factor = torch.linalg.cholesky(damped)
        return factor


def error(moments: Moments, change_GOF: Tensor, shift_GO: Tensor) -> Tensor:
    """Sum over rows of ``(r - ΔW x - shift)²`` for each output, ``[G, O]``."""
    fit_GO = (change_GOF @ moments.xx_GFF * change_GOF).sum(2) + 2 * shift_GO * (
        change_GOF @ moments.x_GF[:, :, None]
    ).squeeze(2)
    cross_GO = (change_GOF * moments.rx_GOF).sum(2) + shift_GO * moments.r_GO
    return moments.rr_GO - 2 * cross_GO + fit_GO + moments.count * shift_GO.square()


@dataclass(frozen=True)
class Patches:
    """How the rows of a layer's input are cut: one row for each output position.

    Attributes:
        kernel, stride, padding, dilation: Of a 2-d convolution (1-d ones are seen as height 1); an empty
            kernel is a linear layer.
        groups: Groups of the convolution.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    def inputs(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Input rows ``[groups, rows, features]``; features are ordered as in a flattened weight row."""
        if not self.kernel:
            return x.reshape(1, -1, x.shape[-1])
        x_NCHW = x if x.dim() == 4 else x[:, :, None]
        x_NFP = self._unfold(x_NCHW) if positions is None else self._gather(x_NCHW, positions)
        n, f, p = x_NFP.shape
        x_NGFP = x_NFP.reshape(n, self.groups, f // self.groups, p)
        return x_NGFP.permute(1, 0, 3, 2).reshape(self.groups, n * p, f // self.groups)

    def _unfold(self, x_NCHW: Tensor) -> Tensor:
        if self.kernel == (1, 1) and self.padding == (0, 0):
            return x_NCHW[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        return F.unfold(x_NCHW, self.kernel, self.dilation, self.padding, self.stride)

    def _gather(self, x_NCHW: Tensor, positions: Tensor) -> Tensor:
        """The same as `_unfold` at some positions only, without making the others."""
        top, left = self.padding
        padded = F.pad(x_NCHW, (left, left, top, top)) if top or left else x_NCHW
        height, width = padded.shape[2:]
        columns = (width - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1
        y_P, x_P = positions // columns * self.stride[0], positions % columns * self.stride[1]
        y_K = torch.arange(self.kernel[0]).repeat_interleave(self.kernel[1]) * self.dilation[0]
        x_K = torch.arange(self.kernel[1]).repeat(self.kernel[0]) * self.dilation[1]
        index_KP = (y_K[:, None] + y_P) * width + x_K[:, None] + x_P
        assert int(index_KP.max()) < height * width, "positions are those of the output"
        x_NCKP = padded.flatten(2)[:, :, index_KP]
        return x_NCKP.flatten(1, 2)

    def outputs(self, y: Tensor, positions: Tensor | None = None) -> Tensor:
        """Output rows ``[groups, rows, outputs]`` that belong to the rows of `inputs`."""
        if not self.kernel:
            return y.reshape(1, -1, y.shape[-1])
        y_NOP = y.flatten(2)
        if positions is not None:
            y_NOP = y_NOP[:, :, positions]
        n, o, p = y_NOP.shape
        y_NGOP = y_NOP.reshape(n, self.groups, o // self.groups, p)
        return y_NGOP.permute(1, 0, 3, 2).reshape(self.groups, n * p, o // self.groups)

    def num_positions(self, y: Tensor) -> int:
        """Output positions of one sample (1 for a linear layer, whose rows are never thinned out)."""
        return y[0, 0].numel() if self.kernel else 1


def thin_out(total: int, wanted: int, generator: torch.Generator) -> Tensor | None:
    """``wanted`` of ``total`` positions by chance, in order; None for all."""
    if wanted >= total:
        return None
    return torch.randperm(total, generator=generator)[:wanted].sort().values


def pair(values: Sequence[int], fill: int) -> tuple[int, int]:
    """The option of a 2-d convolution that stands for this one of a 1-d or 2-d convolution."""
    values = list(values)
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])
