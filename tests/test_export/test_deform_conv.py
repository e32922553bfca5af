"""Deformable convolutions, which neither TensorFlow nor LiteRT has, go there as what they read and weigh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_models import needs_tensorflow
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

import penjing as pj

pytestmark = [pytest.mark.tf, needs_tensorflow]


class Deformed(nn.Module):
    """Offsets (and masks) from the image itself, some of them far outside of it."""

    def __init__(self, sets: int, groups: int, masked: bool, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masked, self.options = masked, {"stride": stride, "padding": (dilation, 1), "dilation": dilation}
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.offset = nn.Conv2d(8, 2 * sets * 6, (3, 2), stride, (dilation, 1), dilation)
        self.mask = nn.Conv2d(8, sets * 6, (3, 2), stride, (dilation, 1), dilation)
        self.kernel = nn.Parameter(torch.randn(12, 8 // groups, 3, 2))
        self.bias = nn.Parameter(torch.randn(12))
        self.last = nn.Conv2d(12, 3, 1)
        nn.init.normal_(self.offset.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        mask = self.mask(x).sigmoid() if self.masked else None
        bias = self.bias if self.masked else None
        x = deform_conv2d(x, self.offset(x), self.kernel, bias, mask=mask, **self.options)
        result: Tensor = self.last(torch.relu(x))
        return result


@pytest.mark.parametrize(
    "network",
    [
        Deformed(1, 1, masked=True),
        Deformed(1, 1, masked=False, stride=2),
        Deformed(2, 4, masked=True, dilation=2),
        Deformed(4, 2, masked=False, stride=2),
    ],
)
def test_in_all_formats(network: Deformed, tmp_path: Path) -> None:
    formats = ("onnx", "saved_model", "litert")
    made = pj.export(network.eval(), tmp_path / "out", formats, example_inputs=torch.randn(3, 2, 9, 8))
    for file in made.files:
        assert file.verification.relative < 1e-5
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]
