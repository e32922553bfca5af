"""Widths are padded to what int8 kernels take whole, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Batches, batches
from onnx import numpy_helper
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional

from penjing.quantize import QuantizeConfig, QuantizeResult, quantize


class Mobile(nn.Module):
    """A residual stream, a hidden width with a depthwise convolution and a gate, a plain hidden width, and
    one that a concatenation and a linear layer hold."""

    def __init__(self, stream: int, hidden: int, plain: int, held: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, stride=2, padding=1)
        self.expand, self.project = nn.Conv2d(stream, hidden, 1), nn.Conv2d(hidden, stream, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.first, self.second = (
            nn.Conv2d(stream, plain, 3, padding=1),
            nn.Conv2d(plain, held, 3, padding=1),
        )
        self.mix = nn.Conv2d(2 * held, held, 1)
        self.head = nn.Linear(held, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        y = functional.relu6(self.depthwise(functional.relu6(self.expand(x))))
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3), True)))))
        x = x + self.project(y * gate)
        x = functional.relu(self.second(functional.relu(self.first(x))))
        x = self.mix(torch.cat([x, functional.max_pool2d(x, 3, 1, 1)], dim=1))
        out: Tensor = self.head(functional.relu(x).mean((2, 3)))
        return out


def both(model: nn.Module, data: Batches, folder: Path) -> tuple[QuantizeResult, QuantizeResult]:
    """The file with widths as they are, and with padded ones."""
    plain, padded = (
        quantize(
            model.eval(),
            data,
            QuantizeConfig(widen=widen, align_inputs=False, reduce_range="full"),  # as on any processor
            out=folder / f"{widen}.onnx",
            time_it=False,
        )
        for widen in (False, True)
    )
    return plain, padded


def answers(path: Path, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray:
    """Outputs of a file in ONNX Runtime's int8 kernels."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's 8-bit weights."""
    held = onnx.load(path).graph.initializer
    return {one.name: numpy_helper.to_array(one).shape for one in held if one.name.endswith(".weight")}


width = st.integers(1, 40)


@settings(max_examples=6, deadline=None)
@given(width, width, width, width)
def test_padding_changes_no_answer(stream: int, hidden: int, plain: int, held: int) -> None:
    """The padded file answers as the plain one does, and the weights file does not know of it."""
    torch.manual_seed(stream + 41 * hidden)
    data = batches(1, 8)
    with TemporaryDirectory() as folder:
        before, after = both(Mobile(stream, hidden, plain, held), data, Path(folder))
        np.testing.assert_allclose(answers(after.path, data[0]), answers(before.path, data[0]), atol=1e-6)
        mine, other = load_file(before.weights_path), load_file(after.weights_path)
        assert mine.keys() == other.keys()
        for name, array in mine.items():
            np.testing.assert_array_equal(other[name], array)
        assert onnx.load(after.path).graph.output == onnx.load(before.path).graph.output
        onnx.checker.check_model(onnx.load(after.path), full_check=True)


def test_which_widths_are_padded(tmp_path: Path) -> None:
    """The stream to a multiple of 8, the hidden width to one of 16, a small one to 16; a concatenation, a
    linear layer hold theirs, the image is folded."""
    torch.manual_seed(0)
    _, padded = both(Mobile(stream=20, hidden=33, plain=5, held=11), batches(1, 8), tmp_path)
    found = shapes(padded.path)
    assert found["stem.weight"] == (24, 12, 2, 2)
    assert found["expand.weight"] == (48, 24, 1, 1)
    assert found["depthwise.weight"] == (48, 1, 3, 3)
    assert found["project.weight"] == (24, 48, 1, 1)
    assert found["excite.weight"][0] == 48
    assert found["first.weight"] == (16, 24, 3, 3)
    assert found["second.weight"] == (11, 16, 3, 3)
    assert found["mix.weight"] == (11, 22, 1, 1)
    assert found["head.weight"][::-1] == (5, 11) or found["head.weight"] == (5, 11)
    assert any("padded" in note for note in padded.notes)


def test_whole_widths_stay(tmp_path: Path) -> None:
    """Where the kernels take all widths whole there is nothing to pad."""
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 5, 1)
    )
    images = batches(1, 8)[0]
    plain, padded = both(model, [np.concatenate([images, images[:, :1]], axis=1)], tmp_path)
    assert shapes(padded.path) == shapes(plain.path)
    assert not any("padded" in note for note in padded.notes)
