"""An ONNX file as it is, from the command line: images come in the layout that it declares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.cli.app import main
from penjing.export import export_onnx


class ChannelsLast(nn.Module):
    """Images as TensorFlow lays them out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x_NHWC: Tensor) -> Tensor:
        hidden = self.conv(x_NHWC.permute(0, 3, 1, 2).float()).relu()
        found: Tensor = self.head(hidden.mean((2, 3)))
        return found


@pytest.fixture
def images(tmp_path: Path) -> str:
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (40, 6, 7, 3)).astype(np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_val=x[:8], y_val=y[:8])
    return str(tmp_path / "images.npz")


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def test_channels_last_files_are_calibrated(images: str, tmp_path: Path) -> None:
    file = export_onnx(ChannelsLast().eval(), tmp_path / "last.onnx", torch.rand(2, 6, 7, 3))
    out = str(tmp_path / "int8.onnx")
    assert code_of("quantize", str(file), "--data", images, "--out", out, "--json") == 0
    assert Path(out).exists()


def test_files_of_raw_pixels_are_not_fed_floats(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = torch.randint(0, 256, (2, 6, 7, 3), dtype=torch.uint8)
    file = export_onnx(ChannelsLast().eval(), tmp_path / "raw.onnx", pixels)
    out = str(tmp_path / "int8.onnx")
    assert code_of("quantize", str(file), "--data", images, "--out", out) == 2
    assert "takes them as uint8" in capsys.readouterr().err
    assert not Path(out).exists()
