"""A tiny data set and network that training tests share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

CLASSES = 5


class Batches:
    """Deterministic in the epoch, another order in each."""

    def __init__(self, count: int = 6, size: int = 16, *, labels: bool = True) -> None:
        self.count, self.size, self.labels, self.epoch = count, size, labels, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        for _ in range(self.count):
            y_N = torch.randint(0, CLASSES, (self.size,), generator=generator)
            x_NCHW = 0.5 * torch.randn(self.size, 1, 8, 8, generator=generator)
            x_NCHW[torch.arange(self.size), 0, 0, y_N] += 3
            yield (x_NCHW, y_N) if self.labels else x_NCHW


def network(width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(width * 16, 12),
        nn.ReLU(),
        nn.Linear(12, CLASSES),
    )


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Every parameter and buffer bit for bit."""
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
