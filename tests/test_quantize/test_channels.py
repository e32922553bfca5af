"""Images come to int8 convolutions in channels that the kernels take whole, and no answer changes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from penjing.quantize import QuantizeConfig, quantize
from penjing.quantize.weights import PAIR_MAX, as_rows

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def answers(path: Path, x: Tensor) -> Array:
    """The output of a file in ONNX Runtime's kernels."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def both(
    model: nn.Module, x: Tensor, folder: Path, **options: Any
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Files as the network is and for the kernels; both answer alike. With 7 bits no sum overflows, so that
    images are folded on any processor."""
    paths = []
    for widen in (False, True):
        config = QuantizeConfig(widen=widen, **{"align_inputs": False, "reduce_range": "full", **options})
        out = folder / f"{widen}.onnx"
        paths.append(quantize(model.eval(), [x], config, out=out, time_it=False).path)
    np.testing.assert_array_equal(answers(paths[1], x), answers(paths[0], x))
    plain, whole = (onnx.load(path) for path in paths)
    onnx.checker.check_model(whole, full_check=True)
    assert whole.graph.input == plain.graph.input
    assert whole.graph.output == plain.graph.output
    return plain, whole


def kinds(model: onnx.ModelProto) -> list[str]:
    """Op types in order."""
    return [node.op_type for node in model.graph.node]


def weight(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """The shape of an 8-bit weight."""
    return next(numpy_helper.to_array(one).shape for one in model.graph.initializer if one.name == name)


@settings(max_examples=12, deadline=None)
@given(
    channels=st.integers(1, 7),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(1, 5),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.sampled_from((1, 1, 1, 2)),
    sides=st.tuples(st.integers(7, 20), st.integers(7, 20)),
    reduce_range=st.sampled_from(("auto", "full")),
)
def test_no_answer_changes(
    channels: int,
    kernel: tuple[int, int],
    stride: int,
    pads: tuple[int, int],
    dilation: int,
    sides: tuple[int, int],
    reduce_range: str,
) -> None:
    """Any kernel, stride, padding and size: the same integers come out of the first convolution."""
    reach = [(k - 1) * dilation + 1 for k in kernel]
    assume(all(side + 2 * p >= r for side, p, r in zip(sides, pads, reach, strict=True)))
    torch.manual_seed(channels)
    stem = nn.Conv2d(channels, 16, kernel, stride, pads, dilation)
    model = nn.Sequential(stem, nn.ReLU(), nn.Conv2d(16, 5, 1))
    with TemporaryDirectory() as folder:
        x = torch.randn(4, channels, *sides) + 0.3
        plain, whole = both(model, x, Path(folder), reduce_range=reduce_range)
    if channels == 4:
        assert kinds(whole) == kinds(plain)


@pytest.mark.parametrize(
    ("conv", "side", "op", "shape"),
    [
        pytest.param(nn.Conv2d(3, 32, 3, 2, 1), 16, "SpaceToDepth", (32, 12, 2, 2), id="folded by 2"),
        pytest.param(nn.Conv2d(3, 32, 7, 4, 3), 16, "SpaceToDepth", (32, 48, 2, 2), id="folded by 4"),
        pytest.param(nn.Conv2d(1, 32, 7, 2, 3), 16, "SpaceToDepth", (32, 4, 4, 4), id="one channel"),
        pytest.param(nn.Conv2d(3, 32, 3, 2, 1), 15, "Pad", (32, 4, 3, 3), id="odd size"),
        pytest.param(nn.Conv2d(3, 32, 3, 1, 1), 16, "Pad", (32, 4, 3, 3), id="stride 1"),
        pytest.param(nn.Conv2d(6, 32, 3, 3, 1), 15, "Pad", (32, 8, 3, 3), id="stride 3"),
        pytest.param(nn.Conv2d(3, 32, 7, 1, 3), 16, None, (32, 3, 7, 7), id="large kernel"),
        pytest.param(nn.Conv2d(4, 32, 3, 2, 1), 16, None, (32, 4, 3, 3), id="whole"),
        pytest.param(nn.Conv2d(3, 8, 3, 1, 1), 16, None, (8, 3, 3, 3), id="few outputs"),
    ],
)
def test_how_it_is_fed(
    conv: nn.Conv2d, side: int, op: str | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Strides of 2 and 4 fold the image where its sides allow, small kernels get channels of zeros."""
    x = torch.randn(4, conv.in_channels, side, side)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(1), nn.LazyLinear(5))
    model(x)
    _, whole = both(model, x, tmp_path)
    assert weight(whole, "0.weight") == shape
    assert {"SpaceToDepth", "Pad"} & set(kinds(whole)) == ({op} if op else set())


def test_images_on_their_own_grid(tmp_path: Path) -> None:
    """8-bit images that were normalised, whose zero is no level of theirs."""
    torch.manual_seed(0)
    levels = torch.randint(0, 256, (8, 3, 16, 16))
    x = (levels / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.226
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 5, 3))
    assert "SpaceToDepth" in kinds(both(model, x, tmp_path, align_inputs=True)[1])


class Branches(nn.Module):
    """A sum and a concatenation of odd widths, each read by two convolutions and by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
        self.first, self.second = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(3, 16, 3, 2)
        self.third, self.fourth = nn.Conv2d(35, 16, 1), nn.Conv2d(35, 16, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.left(x) + self.right(x)
        y = torch.relu(self.first(x)) + torch.relu(self.second(x))
        z = torch.cat([y, y * 0.5, x[:, :, 1::2, 1::2][:, :, : y.shape[2], : y.shape[3]]], 1)
        return torch.relu(self.third(z)) + self.fourth(z), x, z


def test_what_a_kernel_gives_is_padded_once(tmp_path: Path) -> None:
    """Tensors that int8 kernels make are padded, not folded; readers share the channels."""
    torch.manual_seed(0)
    _, whole = both(Branches(), torch.randn(4, 4, 16, 16), tmp_path)
    assert kinds(whole).count("Pad") == 2
    assert "SpaceToDepth" not in kinds(whole)
    assert weight(whole, "first.weight") == weight(whole, "second.weight") == (16, 4, 3, 3)
    assert weight(whole, "third.weight")[:2] == weight(whole, "fourth.weight")[:2] == (16, 36)


@pytest.mark.parametrize("rounding", ["nearest", "second_order", "descent"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_no_pair_overflows_in_the_file(channels: int, rounding: str, tmp_path: Path) -> None:
    """Neighbours in the order that the file has are those that the weights left room for."""
    torch.manual_seed(channels)
    model = nn.Sequential(
        nn.Conv2d(channels, 11, 3, 2, 1), nn.ReLU(), nn.Conv2d(11, 7, 3), nn.Flatten(), nn.Linear(7 * 36, 5)
    )
    for conv in (model[0], model[2]):
        assert isinstance(conv.weight, Tensor)
        conv.weight.data.abs_()  # neighbours that add up
    files = both(model, torch.rand(8, channels, 16, 16), tmp_path, reduce_range="pairs", rounding=rounding)
    for file in files:
        assert "SpaceToDepth" not in kinds(file)
        for name in ("0.weight", "2.weight"):
            held = next(numpy_helper.to_array(one) for one in file.graph.initializer if one.name == name)
            rows = as_rows(held.astype(np.float32), 0)
            rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
            assert np.abs(rows[:, 0::2] + rows[:, 1::2]).max() <= PAIR_MAX
