"""An ONNX file as it is, from the command line: images come in the layout that it declares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.cli.app import main
from penjing.export import export, export_onnx


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


@pytest.fixture
def sizeless(tmp_path: Path) -> Path:
    """A file whose height and width are free."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    axes = {"*": {2: "height", 3: "width"}}
    return export_onnx(network.eval(), tmp_path / "any.onnx", torch.rand(2, 3, 9, 9), dynamic_axes=axes)


def test_sizes_that_a_file_leaves_free_are_said_or_chosen(
    sizeless: Path, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "input"
    assert code_of("inspect", str(sizeless), "--json") == 0
    told = capsys.readouterr()
    assert f"--option '{name}.shape=[2,3,224,224]'" in told.err
    assert code_of("inspect", str(sizeless), "--json", "--option", f"{name}.shape=[2,3,10,10]") == 0
    chosen = capsys.readouterr()
    assert not chosen.err
    macs = [json.loads(answer.out)["num_macs"] for answer in (told, chosen)]
    assert macs[0] == macs[1] // 8**2 * 222**2
    last = ["--data", images, "--out", str(tmp_path / "small")]
    assert code_of("prune", str(sizeless), *last, "--json") == 0
    pruned = capsys.readouterr()
    assert "224" not in pruned.err
    assert json.loads(pruned.out)["before"]["macs"] == macs[1] // 8**2 * 4 * 5
    made = export(sizeless, tmp_path / "files", ("onnx",))
    assert any("224" in note for note in made.files[0].notes)


def test_an_onnx_file_keeps_its_own_weights(
    sizeless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in (("--weights", "other.safetensors"), ("--option", "input.shape=[2,3,9,9]")):
        assert code_of("export", str(sizeless), "--out", str(tmp_path / "x"), *extra) == 2
        assert f"{extra[0]}: an ONNX file is taken as it is" in capsys.readouterr().err


def test_images_of_free_sizes_with_channels_last(images: str, tmp_path: Path) -> None:
    axes = {"*": {1: "height", 2: "width"}}
    example = torch.rand(2, 6, 7, 3)
    file = export_onnx(ChannelsLast().eval(), tmp_path / "last.onnx", example, dynamic_axes=axes)
    out = str(tmp_path / "int8.onnx")
    assert code_of("quantize", str(file), "--data", images, "--out", out, "--json") == 0
