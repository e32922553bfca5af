"""Streaming second moments of what a layer reads and what it should give.

Everything a least-squares refit needs is in the sums of ``x``, ``r``, ``x xᵀ`` and ``r xᵀ``: their size is
set by the layer, not by the number of samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EXACT_FEATURES = 768
"""Products in float64 up to this many features; beyond it, products in float32 are added up in float64."""

_LIFTS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)
"""What a ridge below rounding error is raised by in turn, until the covariance can be factored."""


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
        """Means and covariances; without an intercept, about zero, not the mean."""
        n = max(self.count, 1)
        x_GF, r_GO = self.x_GF / n, self.r_GO / n
        if not intercept:
            x_GF, r_GO = torch.zeros_like(x_GF), torch.zeros_like(r_GO)
        return Centred(
            x_GF,
            r_GO,
            self.xx_GFF / n - x_GF[:, :, None] * x_GF[:, None, :],
            self.rx_GOF / n - r_GO[:, :, None] * x_GF[:, None, :],
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
        lift_G = scale_G + 1e-4 * self.x_GF.square().mean(1)  # what rounding leaves grows with the means
        for share in _LIFTS:
            if not bool((failed > 0).any()):
                break
            damped.diagonal(dim1=1, dim2=2).add_((share * lift_G)[:, None])
            factor, failed = torch.linalg.cholesky_ex(damped)
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
        kernel, stride, dilation: Of a convolution, one number for each dimension of space; an empty kernel is
            a linear layer.
        padding: Zeros before and behind, for each dimension of space.
        groups: Groups of the convolution.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def inputs(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Input rows ``[groups, rows, features]``; features are ordered as in a flattened weight row."""
        if not self.kernel:
            return x.reshape(1, -1, x.shape[-1])
        if any(side for sides in self.padding for side in sides):
            x = F.pad(x, [side for sides in reversed(self.padding) for side in sides])
        x_NFP = self._unfold(x) if positions is None else self._gather(x, positions)
        n, f, p = x_NFP.shape
        x_NGFP = x_NFP.reshape(n, self.groups, f // self.groups, p)
        return x_NGFP.permute(1, 0, 3, 2).reshape(self.groups, n * p, f // self.groups)

    def _unfold(self, x: Tensor) -> Tensor:
        """All rows ``[N, features, positions]`` of a padded input."""
        if set(self.kernel) == {1}:
            every = tuple(slice(None, None, step) for step in self.stride)
            return x[(slice(None), slice(None), *every)].flatten(2)
        if len(self.kernel) == 2:
            return F.unfold(x, self.kernel, self.dilation, 0, self.stride)
        return self._gather(x, torch.arange(math.prod(self._space(x))))

    def _gather(self, x: Tensor, positions: Tensor) -> Tensor:
        """The same as `_unfold` at some positions only, without making the others."""
        at_P = torch.unravel_index(positions, self._space(x))
        at_K = torch.unravel_index(torch.arange(math.prod(self.kernel)), self.kernel)
        index_KP = torch.zeros(1, 1, dtype=torch.int64)
        for size, p, k, step, spread in zip(x.shape[2:], at_P, at_K, self.stride, self.dilation, strict=True):
            index_KP = index_KP * size + k[:, None] * spread + p * step
        x_NCKP = x.flatten(2)[:, :, index_KP]
        return x_NCKP.flatten(1, 2)

    def _space(self, x: Tensor) -> tuple[int, ...]:
        """How many positions the output has in each dimension of space, for a padded input."""
        parts = zip(x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - spread * (k - 1) - 1) // step + 1 for size, k, step, spread in parts)

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
