"""A residual network of any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.b = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.norm(self.a(x))))  # type: ignore[no-any-return]


def wide(width: int) -> tuple[nn.Module, Tensor]:
    """Six blocks and an input."""
    model = nn.Sequential(nn.Conv2d(3, width, 1), *(Block(width) for _ in range(6)), nn.Conv2d(width, 2, 1))
    return model, torch.randn(2, 3, 4, 4)
