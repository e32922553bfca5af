"""Ops in few dimensions, which LiteRT's kernels know, give what they give in all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import needs_tensorflow, one_op
from torch import Tensor, nn

import penjing as pj
import penjing.export as pe

pytestmark = [pytest.mark.tf, needs_tensorflow]


def test_few_dimensions_give_the_same() -> None:
    from penjing.export.tf_ops.backend import tf
    from penjing.export.tf_ops.broadcast import broadcast

    rng = np.random.default_rng(0)
    for _ in range(150):
        sizes = [int(s) for s in rng.integers(1, 4, rng.integers(1, 8))]
        arrays = []
        for _ in range(3):
            shape = [s if rng.random() < 0.6 else 1 for s in sizes][rng.integers(0, len(sizes)) :]
            arrays.append(rng.normal(size=shape).astype(np.float32))
        tensors = [tf.constant(array) for array in arrays]
        found = broadcast(lambda c, a, b: tf.where(c > 0, a, b), tensors, 2).numpy()
        expected = np.where(arrays[0] > 0, arrays[1], arrays[2])
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("shapes", "groups"),
    [
        ([[7, 6, 7, 6], [1, 1, 7, 6]], [[0, 1], [2, 3]]),
        ([[None, 2, 7], [1, 1, 7]], [[0, 1], [2]]),
        ([[None, 2], [3, 2]], None),
        ([[2, 1, 3], [2, 1, 3]], [[0, 1, 2]]),
        ([[1, 2, 3], [1, 1, 3]], [[0, 1], [2]]),
    ],
)
def test_dimensions_that_do_the_same_are_one(
    shapes: list[list[int | None]], groups: list[list[int]] | None
) -> None:
    from penjing.export.tf_ops.broadcast import merged

    assert merged(shapes) == groups


@pytest.mark.parametrize(
    ("op", "small"), [("Where", (7, 6, 1, 1)), ("Max", (7, 6, 1, 1)), ("Pow", (2, 1, 1, 7, 6))]
)
def test_six_dimensions_reach_litert(op: str, small: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1.5, (2, 2, 7, 6, 7, 6)).astype(np.float32)
    mask = rng.random(small) > 0.5
    if op == "Where":
        model = one_op(
            op, {"x": x}, constants={"m": mask, "z": np.zeros((), np.float32)}, order=["m", "x", "z"]
        )
    else:
        model = one_op(op, {"x": x}, constants={"m": mask.astype(np.float32)})
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    made = pe.export(path, tmp_path / "out", ["litert"], example_inputs=x, batch_sizes=(2, 3))
    assert made.ok


def test_a_transpose_of_eight_dimensions_reaches_litert(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 2, 2, 3, 2, 4)).astype(np.float32)
    path = tmp_path / "m.onnx"
    onnx.save(one_op("Transpose", {"x": x}, perm=[0, 1, 3, 5, 2, 4, 6, 7]), path)
    made = pe.export(path, tmp_path / "out", ["saved_model", "litert"], example_inputs=x, batch_sizes=(2, 3))
    assert all(file.verification.max_abs == 0 for file in made.files)


class WithTime(nn.Module):
    """A block of a neural ODE: the time stands beside the channels as one more."""

    time: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(9, 4, 3, padding=1)
        self.register_buffer("time", torch.tensor([0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        time = torch.ones_like(x[:, :1]) * (self.time[1] / 2)
        found: Tensor = self.last(torch.cat([time, x], 1))
        return found


def test_a_scalar_spread_over_a_free_batch_keeps_its_sizes(tmp_path: Path) -> None:
    """LiteRT has no convolution of a number of channels that its converter does not know."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert pj.export(WithTime().eval(), tmp_path, ("litert",), example_inputs=x).ok
