"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 32,
    *,
    hidden: Sequence[int] = (256, 128),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Flatten, then linear layers with ReLU; ``(N, C, H, W)`` → ``(N, num_classes)``."""
    layers: list[nn.Module] = [nn.Flatten()]
    size = in_channels * image_size * image_size
    for width in hidden:
        layers += [nn.Linear(size, width), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        size = width
    return nn.Sequential(*layers, nn.Linear(size, num_classes))
