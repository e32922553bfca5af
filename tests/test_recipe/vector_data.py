"""Vectors to classify, small enough to train on in a test."""

from __future__ import annotations

import torch
from torch import Tensor


def halves(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Vectors of 12 numbers; the label says which half is larger. Batches of 20."""
    generator = torch.Generator().manual_seed(seed)
    x_NF = torch.randn(count, 12, generator=generator)
    y_N = (x_NF[:, :6].sum(1) > x_NF[:, 6:].sum(1)).long()
    return [(x_NF[i : i + 20], y_N[i : i + 20]) for i in range(0, count, 20)]
