"""Pooling that LiteRT has no op for: in three dimensions, and with the places of the largest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer(x)
        return [
            F.max_pool3d(x, 2),
            F.max_pool3d(x, 3, 2, 1),
            F.max_pool3d(x, 3, 2, 1, ceil_mode=True),
            F.max_pool3d(x, 2, 1, dilation=2),
            F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
            F.max_pool3d(x, 1, 2),
            F.avg_pool3d(x, (1, 2, 2)),
            F.avg_pool3d(x, (2, 1, 1), (2, 1, 1)),
            F.avg_pool3d(x, 3, 2, 1),
            F.avg_pool3d(x, 3, 2, 1, count_include_pad=False),
            F.avg_pool3d(x, 3, 1, 1, ceil_mode=True, count_include_pad=False),
            F.adaptive_avg_pool3d(x, (2, 3, 3)),
            F.local_response_norm(x[:, :, 0], 3),  # a mean over channels, pooled in three dimensions
        ]


class Places(nn.Module):
    """Where the largest were, told and put back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer(x[:, :, 0])
        pooled, places = F.max_pool2d(torch.relu(x), 2, return_indices=True)  # many that are equal
        return [
            self.last(F.max_unpool2d(pooled, places, [2, 2], output_size=x.shape[-2:])),
            *F.max_pool2d(x, 3, 2, 1, return_indices=True),
            *F.max_pool2d(x, 2, 1, dilation=2, return_indices=True),
            *F.max_pool2d(x, 3, 2, 1, ceil_mode=True, return_indices=True),
            *F.max_pool1d(x[:, :, 0], 3, 2, 1, return_indices=True),
        ]


@pytest.mark.parametrize("network", [Pools, Places])
def test_in_all_formats(network: type[nn.Module], tmp_path: Path) -> None:
    formats = ("onnx", "saved_model", "litert")
    x = torch.randn(3, 2, 6, 9, 8)
    made = pj.export(network().eval(), tmp_path / "out", formats=formats, example_inputs=x)
    for file in made.files:
        assert file.verification.relative < 1e-5
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]
