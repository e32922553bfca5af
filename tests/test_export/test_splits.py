"""Splits at sizes that the batch decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import penjing as pj


class HeadsInTheBatch(nn.Module):
    """Attention whose heads are laid beside the samples and taken apart again, as in set transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.cat(torch.split(part, 2, 2), 0) for part in self.qkv(x).chunk(3, -1))
        mixed = torch.softmax(q @ k.mT, -1) @ v
        out: Tensor = self.out(torch.cat(torch.split(mixed, x.size(0), 0), 2))
        return out


class TwoInOne(nn.Module):
    """An encoder that sees both of a pair at once, as in networks for optical flow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(0)
        once, mixed, twice = torch.split(
            self.encoder(torch.cat([x, x.flip(1), x * 2, x.tanh()])), [size, 2 * size, size]
        )
        out: Tensor = self.out(torch.relu(once - twice) * mixed[:size])
        return out


@pytest.mark.parametrize("model", [HeadsInTheBatch, TwoInOne])
def test_all_formats_split_there(model: type[nn.Module], tmp_path: Path) -> None:
    formats = ("onnx", "saved_model", "litert")
    x = torch.randn(3, 5, 8)
    made = pj.export(model().eval(), tmp_path / "out", formats=formats, example_inputs=x)
    for file in made.files:
        assert file.verification.relative < 1e-4
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]
