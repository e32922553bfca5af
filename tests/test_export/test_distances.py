"""Distances of all pairs of rows are torch's, in every norm and by both ways of computing them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.export import export_onnx, verify


class Nearest(nn.Module):
    def __init__(self, rows: int, p: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.codes, self.p = nn.Linear(6, 8), nn.Parameter(torch.randn(rows, 8)), p

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.net(x), self.codes.expand(*x.shape[:-2], -1, -1), self.p)


@pytest.mark.parametrize("p", [0.0, 1.0, 1.5, 2.0, float("inf")])
@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("shape", [(4, 6), (3, 30, 6)])
def test_in_onnx(p: float, rows: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    model, x = Nearest(rows, p).eval(), torch.randn(*shape)
    assert verify(export_onnx(model, tmp_path / "m.onnx", x), model, x).relative < 1e-5


def test_in_all_formats(tmp_path: Path) -> None:
    for rows in (5, 40):
        formats = ("onnx", "saved_model", "litert")
        x = torch.randn(3, 30, 6)
        made = pj.export(Nearest(rows, 2.0).eval(), tmp_path / f"{rows}", formats=formats, example_inputs=x)
        assert all(file.verification.relative < 1e-5 for file in made.files)
