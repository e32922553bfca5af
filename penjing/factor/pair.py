"""A layer as two thin ones: what its weight is of a low rank.

A convolution of kernel kh × kw from i to o channels becomes one of kh × 1 from i to r channels and one of
1 × kw from r to o (Jaderberg et al. 2014, "Speeding up convolutional neural networks with low rank
expansions", scheme 2); a linear layer, or one of 1 × 1, a product of two matrices. All of them are one
matter: a matrix of (i · kh) × (kw · o), written as a product over r.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import get_args

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
"""What can be split; of exactly these types, as a subclass may compute something else."""


class Pair(nn.Sequential):
    """Two layers in the place of one.

    Attributes:
        into: From the layer's inputs to the values in between; without a bias.
        out: From these to the layer's outputs.
    """

    into: Layer
    out: Layer

    def __init__(self, into: Layer, out: Layer) -> None:
        super().__init__(OrderedDict(into=into, out=out))

    @property
    def rank(self) -> int:
        """How many values there are in between."""
        return len(self.into.weight)

    @property
    def weight(self) -> Tensor:
        """The weight of the one layer that computes the same, for code that looks at it."""
        first, second = self.into.weight, self.out.weight
        if first.dim() == 4:
            return torch.einsum("riha,orbw->oihw", first, second)
        if first.dim() == 3:
            return torch.einsum("rik,orb->oik", first, second)
        return second @ first

    @property
    def bias(self) -> Tensor | None:
        """The bias of the outputs."""
        return self.out.bias


def refusal(layer: nn.Module) -> str | None:
    """Why a layer cannot be split; None where it can."""
    if not isinstance(layer, Layer) or type(layer) not in get_args(Layer):
        return "it is no plain convolution or linear layer"
    if not isinstance(layer, nn.Linear):
        if layer.groups > 1:
            return "it is grouped"
        if layer.padding_mode != "zeros":
            return f"it pads with {layer.padding_mode}"
    if not layer.weight.is_floating_point():
        return "its weights are not real numbers"
    return None


def as_matrix(weight: Tensor) -> Tensor:
    """A weight of (o, i), (o, i, kh) or (o, i, kh, kw) as (i · kh) × (kw · o)."""
    full = weight.reshape(*weight.shape, *[1] * (4 - weight.dim()))
    return full.permute(1, 2, 3, 0).reshape(full.shape[1] * full.shape[2], -1)


def split(layer: Layer, first: Tensor, second: Tensor, bias: Tensor | None) -> Pair:
    """The pair that computes with a product in the place of a layer's weight.

    Args:
        layer: The layer.
        first: Of (i · kh) × r.
        second: Of r × (kw · o).
        bias: Of the outputs, if any.
    """
    into, out = _halves(layer, first.shape[1])
    with torch.no_grad():
        into.weight.copy_(first.T.reshape(into.weight.shape))
        columns = second.reshape(len(second), -1, len(layer.weight))  # r, kw, o
        out.weight.copy_(columns.permute(2, 0, 1).reshape(out.weight.shape))
        if out.bias is not None and bias is not None:
            out.bias.copy_(bias)
    into.weight.requires_grad_(layer.weight.requires_grad)
    out.weight.requires_grad_(layer.weight.requires_grad)
    if out.bias is not None and layer.bias is not None:
        out.bias.requires_grad_(layer.bias.requires_grad)
    return Pair(into, out).to(layer.weight).train(layer.training)


def _halves(layer: Layer, rank: int) -> tuple[Layer, Layer]:
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, has_bias)
    i, o, pads = layer.in_channels, layer.out_channels, layer.padding
    if isinstance(layer, nn.Conv1d):
        (k,), (s,), (d,), pad = layer.kernel_size, layer.stride, layer.dilation, pads
        into = nn.Conv1d(i, rank, k, s, pad if isinstance(pad, str) else pad[0], d, bias=False)
        return into, nn.Conv1d(rank, o, 1, bias=has_bias)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    down, along = (pads, pads) if isinstance(pads, str) else ((pads[0], 0), (0, pads[1]))
    return (
        nn.Conv2d(i, rank, (kh, 1), (sh, 1), down, (dh, 1), bias=False),
        nn.Conv2d(rank, o, (1, kw), (1, sw), along, (1, dw), bias=has_bias),
    )
