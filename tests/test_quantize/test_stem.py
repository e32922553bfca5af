"""Images come to int8 convolutions in channels that the kernels take whole, and no answer changes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

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


def both(
    model: nn.Module, x: Tensor, folder: Path, *, align: bool = False
) -> tuple[onnx.ModelProto, onnx.ModelProto, np.ndarray, np.ndarray]:
    """Files as the network is and for the kernels, and what each answers to ``x``."""
    found = []
    for widen in (False, True):
        config = QuantizeConfig(widen=widen, align_inputs=align)
        path = quantize(model.eval(), [x], config, out=folder / f"{widen}.onnx", time_it=False).path
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found.append((onnx.load(path), np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])))
    (plain, before), (whole, after) = found
    return plain, whole, before, after


def kinds(model: onnx.ModelProto) -> list[str]:
    """Op types in order."""
    return [node.op_type for node in model.graph.node]


def weight(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """The shape of an 8-bit weight."""
    return next(numpy_helper.to_array(one).shape for one in model.graph.initializer if one.name == name)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 7),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(1, 5),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.sampled_from((1, 1, 1, 2)),
    sides=st.tuples(st.integers(7, 20), st.integers(7, 20)),
)
def test_no_answer_changes(
    channels: int,
    kernel: tuple[int, int],
    stride: int,
    pads: tuple[int, int],
    dilation: int,
    sides: tuple[int, int],
) -> None:
    """Any kernel, stride, padding and size: the same integers come out of the first convolution."""
    reach = [(k - 1) * dilation + 1 for k in kernel]
    assume(all(side + 2 * p >= r for side, p, r in zip(sides, pads, reach, strict=True)))
    torch.manual_seed(channels)
    stem = nn.Conv2d(channels, 16, kernel, stride, pads, dilation)
    model = nn.Sequential(stem, nn.ReLU(), nn.Conv2d(16, 5, 1))
    x = torch.randn(4, channels, *sides) + 0.3
    with TemporaryDirectory() as folder:
        plain, whole, before, after = both(model, x, Path(folder))
    np.testing.assert_array_equal(after, before)
    onnx.checker.check_model(whole, full_check=True)
    assert whole.graph.input == plain.graph.input
    assert whole.graph.output == plain.graph.output
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
    ],
)
def test_how_it_is_fed(
    conv: nn.Conv2d, side: int, op: str | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Strides of 2 and 4 fold the image where its sides allow, small kernels get channels of zeros."""
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(1), nn.LazyLinear(5))
    x = torch.randn(4, conv.in_channels, side, side)
    model(x)
    _, whole, *_ = both(model, x, tmp_path)
    assert weight(whole, "0.weight") == shape
    assert {"SpaceToDepth", "Pad"} & set(kinds(whole)) == ({op} if op else set())


def test_images_on_their_own_grid(tmp_path: Path) -> None:
    """8-bit images that were normalised, whose zero is no level of theirs."""
    torch.manual_seed(0)
    levels = torch.randint(0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    x = (levels / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.226
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 5, 3))
    _, whole, before, after = both(model, x, tmp_path, align=True)
    np.testing.assert_array_equal(after, before)
    assert "SpaceToDepth" in kinds(whole)


def test_what_a_kernel_gives_is_left_alone(tmp_path: Path) -> None:
    """A tensor of odd width that int8 kernels make stays as it is: nothing may stand between them."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
            self.after, self.head = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.left(x) + self.right(x)
            return self.head(torch.relu(self.after(x))), x

    torch.manual_seed(0)
    _, whole, before, after = both(Sum(), torch.randn(4, 4, 16, 16), tmp_path)
    np.testing.assert_array_equal(after, before)
    assert "SpaceToDepth" not in kinds(whole)
