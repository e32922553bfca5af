"""Sampling at given places is torch's, in every mode and whatever lies outside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj


class Sampling(nn.Module):
    """All modes with one kind of outside, corners aligned or not."""

    def __init__(self, layer: nn.Module, modes: tuple[str, ...], padding: str) -> None:
        super().__init__()
        self.layer, self.modes, self.padding = layer, modes, padding

    def forward(self, x: Tensor, grid: Tensor) -> list[Tensor]:
        x = self.layer(x)
        return [
            F.grid_sample(x, grid, mode=mode, padding_mode=self.padding, align_corners=corners)
            for mode in self.modes
            for corners in (False, True)
        ]


@pytest.mark.parametrize(
    ("padding", "dims"), [("zeros", 2), ("border", 2), ("reflection", 2), ("reflection", 3)]
)
def test_in_all_formats(padding: str, dims: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, *(7, 9, 6)[:dims], generator=generator)
    grid = 6 * torch.rand(3, *(5, 6, 4)[:dims], dims, generator=generator) - 3
    layer = nn.Conv2d(3, 4, 1) if dims == 2 else nn.Conv3d(3, 4, 1)
    modes = ("bilinear", "nearest", "bicubic")[: 3 if dims == 2 else 2]
    formats = ("onnx", "saved_model", "litert")
    model = Sampling(layer, modes, padding).eval()
    made = pj.export(model, tmp_path / "out", formats=formats, example_inputs=(x, grid))
    for file in made.files:
        assert file.verification.relative < 1e-5
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]
