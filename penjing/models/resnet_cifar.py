"""The CIFAR residual networks of He et al. 2016 (arXiv:1512.03385, section 4.2), shortcut option A.

Depth is ``6n + 2`` for ``n`` blocks a stage. Where a stage halves the image and doubles the channels, the
shortcut takes every second pixel and pads with zero channels, half of them before and half after; it has no
parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut around them."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.pad = (width - in_channels) // 2

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` → ``(N, width, H / stride, W / stride)``."""
        out = F.relu(self.bn1(self.conv1(x_NCHW)))
        out = self.bn2(self.conv2(out))
        shortcut = x_NCHW
        if self.stride != 1 or self.pad:
            shortcut = F.pad(x_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + shortcut)


class ResNet(nn.Module):
    """Three stages of ``num_blocks`` blocks with 16, 32 and 64 channels, global average pool, linear."""

    def __init__(self, num_blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], num_blocks, stride=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], num_blocks, stride=2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], num_blocks, stride=2)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x_NCHW)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_channels: int, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = Block(in_channels, width, stride)
    return nn.Sequential(first, *(Block(width, width, 1) for _ in range(num_blocks - 1)))


def resnet20(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> ResNet:
    """Three blocks a stage, 0.27 million parameters. Any ``image_size`` serves: the pool is global."""
    return ResNet(3, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> ResNet:
    """Nine blocks a stage, 0.85 million parameters. Any ``image_size`` serves: the pool is global."""
    return ResNet(9, num_classes, in_channels)
