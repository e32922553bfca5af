"""Padding with −∞ becomes the MaxPool's own, and only where that is the same function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from export_models import needs_tensorflow
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

import penjing.export as pe
from penjing.export.onnx_pads import merge_pads


class PaddedPool(nn.Module):
    """A max-pool over values below zero too, padded as TensorFlow pads."""

    def __init__(self, fill: float = float("-inf")) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 1)
        self.fill = fill

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N3HW`` to scores ``N4``."""
        padded = nn.functional.pad(self.before(x), (0, 1, 0, 1), value=self.fill)
        out: torch.Tensor = self.after(nn.functional.max_pool2d(padded, 3, 2)).mean((2, 3))
        return out


def operators(path: Path) -> list[str]:
    """Kinds of the nodes of a file."""
    return [node.op_type for node in onnx.load(path).graph.node]


def pool_file(pads: list[int], fill: float, kernel: int, stride: int, own: list[int]) -> onnx.ModelProto:
    """Pad, then MaxPool, on one channel of any size."""
    nodes = [
        helper.make_node("Pad", ["x", "pads", "fill"], ["padded"]),
        helper.make_node(
            "MaxPool", ["padded"], ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=own
        ),
    ]
    shape: list[str | int | None] = ["n", 1, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("pads", TensorProto.INT64, [8], pads),
            helper.make_tensor("fill", TensorProto.FLOAT, [], [fill]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Output in ONNX Runtime."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    out: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return out


@given(st.data())
def test_merging_keeps_every_value(data: st.DataObject) -> None:
    """Any pads, kernel and stride: the same values, merged wherever every window keeps an element."""
    kernel, stride = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 3))
    around = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    own = data.draw(st.lists(st.integers(0, kernel - 1), min_size=4, max_size=4))
    proto = pool_file([0, 0, *around[:2], 0, 0, *around[2:]], float("-inf"), kernel, stride, own)
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(-3, 1, (2, 1, 7, 8)).astype(np.float32)
    model = ir.from_proto(proto)
    merged = merge_pads(model.graph)
    assert merged == (max(a + b for a, b in zip(around, own, strict=True)) < kernel)
    assert np.array_equal(run(ir.to_proto(model), x), run(proto, x))


@pytest.mark.parametrize(
    ("pads", "fill"), [([0, 0, 0, 0, 0, 0, 1, 1], 0.0), ([0, 1, 0, 0, 0, 0, 1, 1], -np.inf)]
)
def test_other_padding_stays(pads: list[int], fill: float) -> None:
    """Zeros are values of the image, and channels are not the pool's to pad."""
    model = ir.from_proto(pool_file(pads, fill, 3, 2, [0, 0, 0, 0]))
    assert merge_pads(model.graph) == 0


def test_an_export_has_one_op(tmp_path: Path) -> None:
    """The exported file pools alone, on free batches."""
    model, x = PaddedPool().eval(), torch.randn(2, 3, 11, 11)
    path = pe.export_onnx(model, tmp_path / "m.onnx", x)
    assert "Pad" not in operators(path)
    assert "Pad" in operators(pe.export_onnx(PaddedPool(0.0).eval(), tmp_path / "zero.onnx", x))
    assert pe.verify(path, model, x).ok


@pytest.mark.tf
@needs_tensorflow
def test_int8_litert_of_a_padded_pool(tmp_path: Path) -> None:
    """An infinite range would abort LiteRT's interpreter; merged, the file keeps the answers."""
    model, x = PaddedPool().eval(), torch.randn(32, 3, 11, 11)
    source = pe.export_onnx(model, tmp_path / "m.onnx", x[:2])
    file = pe.export(
        source, tmp_path, ["litert_int8"], data=list(x.reshape(4, 8, 3, 11, 11)), batch_sizes=(1,)
    )["litert_int8"]
    assert file.verification.ok
    assert file.verification.rows[0].rms_relative < 0.1
