"""What a layer reads, as moments of its columns, and the ranks that these leave."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from penjing.factor.pair import Layer, Pair, as_matrix, split
from penjing.factor.ranks import Choice
from penjing.prune.moments import Patches, thin_out

_WIDEST = 4096
"""Features up to which all pairs of them have a moment; above it each has its own alone."""
_RIDGE = 1e-6
"""Added to the covariance, relative to the mean variance, so that its root has an inverse."""


class Columns:
    """A layer and second moments, in float64, of what its first half would read.

    Attributes:
        features: Numbers in a column: channels × height of the kernel.
        rows: Columns seen.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.matrix = as_matrix(layer.weight.detach()).double()
        self.features = len(self.matrix)
        pairs = (self.features,) if self.features <= _WIDEST else ()
        self._sums = torch.zeros(self.features, dtype=torch.float64)
        self._products = torch.zeros(self.features, *pairs, dtype=torch.float64)
        self.rows = 0
        self._between = self._outputs = 0  # positions of what the halves give

    def add(self, x: Tensor, y: Tensor, wanted: int, generator: torch.Generator) -> None:
        """Columns of an input, about so many, at positions drawn by chance.

        Args:
            x: What the layer reads.
            y: What it gives.
            wanted: How many columns.
            generator: Draws them.
        """
        if isinstance(self.layer, nn.Linear):
            rows = x.reshape(-1, x.shape[-1])
            self._between += len(rows)
            self._outputs += len(rows)
            some = thin_out(len(rows), wanted, generator)
            rows = rows if some is None else rows[some]
        else:
            space = len(self.layer.kernel_size)
            x, y = (value if value.dim() == space + 2 else value[None] for value in (x, y))
            outputs = y[0, 0].numel()
            between = y.shape[2] * (x.shape[3] if space == 2 else 1)
            self._between += len(x) * between
            self._outputs += len(x) * outputs
            positions = thin_out(between, max(wanted // len(x), 1), generator)
            rows = _cut(self.layer).inputs(x, positions)[0]
        rows = rows.double()
        self.rows += len(rows)
        self._sums += rows.sum(0)
        self._products += rows.T @ rows if self._products.dim() == 2 else rows.square().sum(0)

    @property
    def _mean(self) -> Tensor:
        """Of each feature; 0 where the layer has no bias that could give what a mean gives."""
        unknown = self.layer.bias is None or not self.rows
        return torch.zeros_like(self._sums) if unknown else self._sums / self.rows

    @cached_property
    def _roots(self) -> tuple[Tensor, Tensor]:
        """Root of the covariance, and its inverse; where nothing was seen, of features that are all alike."""
        products = self._products / max(self.rows, 1)
        if products.dim() == 1:
            values, vectors = products - self._mean.square(), None
        else:
            values, vectors = torch.linalg.eigh(products - torch.outer(self._mean, self._mean))
        values = values.clamp_min(0)
        root = (values + _RIDGE * (float(values.mean()) or 1.0)).sqrt()
        if vectors is None:
            return torch.diag(root), torch.diag(1 / root)
        return vectors * root @ vectors.T, vectors / root @ vectors.T

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        u, values, v = torch.linalg.svd(self._roots[0] @ self.matrix, full_matrices=False)
        return u, values, v

    @property
    def full_rank(self) -> int:
        """With which nothing is lost."""
        return len(self._svd[1])

    def by_macs(self, whole: int) -> list[Choice]:
        """The layer as it is, and every rank that takes fewer multiplications.

        Args:
            whole: What the layer takes.
        """
        return self._choices(whole, self._between / self._outputs)

    def by_params(self) -> list[Choice]:
        """The layer as it is, and every rank that has fewer parameters."""
        return self._choices(self.matrix.numel(), 1.0)

    def _choices(self, whole: int, spread: float) -> list[Choice]:
        """Ranks, where each position of the output takes so many in between."""
        squares = self._svd[1].square()
        lost = squares.flip(0).cumsum(0).flip(0) / (float(squares.sum()) or 1.0)
        each = whole * (self.features * spread + self.matrix.shape[1]) / self.matrix.numel()
        ranks = (rank for rank in range(1, len(lost)) if round(rank * each) < whole)
        return [
            Choice(None, whole, 0.0),
            *(Choice(rank, round(rank * each), float(lost[rank])) for rank in ranks),
        ]

    def pair(self, rank: int) -> Pair:
        """The two layers of this rank that change the output least."""
        u, values, v = self._svd
        scale = values[:rank].sqrt()
        first, second = self._roots[1] @ (u[:, :rank] * scale), scale[:, None] * v[:rank]
        bias = None
        if self.layer.bias is not None:
            gone = self._mean @ (self.matrix - first @ second)
            bias = self.layer.bias.detach() + gone.reshape(-1, len(self.layer.bias)).sum(0)
        return split(self.layer, first, second, bias)


def _cut(layer: nn.Conv1d | nn.Conv2d) -> Patches:
    """How columns are cut out of what a convolution reads."""
    one = (1,) * (len(layer.kernel_size) - 1)
    kernel, dilation = layer.kernel_size[0], layer.dilation[0]
    if isinstance(layer.padding, str):
        total = dilation * (kernel - 1) if layer.padding == "same" else 0
        pads = (total // 2, total - total // 2)
    else:
        pads = (layer.padding[0], layer.padding[0])
    return Patches((kernel, *one), (layer.stride[0], *one), (pads, *((0, 0) for _ in one)), (dilation, *one))
