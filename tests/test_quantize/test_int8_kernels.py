"""What comes after a layer does not keep its int8 kernel away: other readers of its output, and sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from nets import graph_file, weights
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from penjing.quantize import quantize


class TwoReaders(nn.Module):
    """The output of ``first`` is read by a layer, past what ``kind`` names, and in float."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(16, 24, bias="tokens" not in kind), nn.Linear(24, 24)
        self.other, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The head's scores, and the first layer's output where that is asked for."""
        first = self.first(x)
        if "clip" in self.kind:
            second = self.second(functional.relu6(first))
        else:
            second = self.second(functional.relu(first) if "relu" in self.kind else first)
        if "both" in self.kind:
            second = second + self.other(functional.relu(first))
        scores = self.head(torch.tanh(first) + functional.gelu(second))
        return (scores, first) if "output" in self.kind else (scores,)


KINDS = (
    "plain", "relu", "clip", "both", "relu both", "output", "relu output", "tokens", "tokens relu",
    "tokens both",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_that_is_told_to_be_int8_runs_so(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = (16, 6, 16) if "tokens" in kind else (16, 16)
    data = [torch.randn(shape) for _ in range(8)]
    result = quantize(TwoReaders(kind).eval(), data, out=tmp_path / "int8.onnx", time_it=False)
    assert result.agreement_db > 60
    assert result.sqnr_db > 30
    assert all(layer.quantized for layer in result.layers)
    assert not float_products(result.path, tmp_path)


@pytest.mark.parametrize("shape", [["n", 16], [4, 16], ["n", 6, 16], [4, 6, 16], [1, 6, 16], [2, 2, 6, 16]])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [(24,), (1, 24)])
def test_products_and_sums_stay_apart(
    shape: list[int | str], residual: bool, bias: tuple[int, ...], tmp_path: Path
) -> None:
    """ONNX Runtime makes a Gemm of them, whose bias in float keeps the int8 kernel away."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"]),
        helper.make_node("Add", ["b1", "m1"], ["a1"]),
        helper.make_node("Tanh", ["a1"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["m2"]),
        helper.make_node("Add", ["m2", "r" if residual else "b2"], ["y"]),
    ]
    held = {"w1": weights(16, 24), "w2": weights(24, 24), "b1": weights(*bias), "b2": weights(*bias)}
    source = graph_file(tmp_path / "m.onnx", nodes, held, {"x": shape})
    sizes = [4 if size == "n" else int(size) for size in shape]
    data = [np.random.default_rng(i).uniform(-1, 1, sizes).astype(np.float32) for i in range(16)]
    result = quantize(source, data, out=tmp_path / "int8.onnx", time_it=False)
    assert result.num_quantized == 2
    assert result.agreement_db > 60
    assert result.sqnr_db > 25
    assert not float_products(result.path, tmp_path)


def float_products(path: Path, folder: Path) -> set[str]:
    """Products that ONNX Runtime computes in float, by op."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}
    return found & {"Gemm", "MatMul", "FusedGemm", "FusedMatMul"}


class OneInFloat(nn.Module):
    """Three layers, of which ``middle`` stays in float; its outputs are of very different sizes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 3)
        self.middle = (nn.ConvTranspose2d if kind == "deconv" else nn.Conv2d)(16, 16, 3)
        self.factor = nn.Parameter(torch.randn(16, 1, 1))
        with torch.no_grad():
            self.middle.weight[:1] *= 300
            self.last.weight[:, :1] *= 0.01

    def forward(self, x: Tensor) -> Tensor:
        """What the last layer gives."""
        x = self.middle(functional.relu(self.first(x)))
        if self.kind == "scaled":
            x = x * self.factor
        x = functional.relu6(x) if self.kind == "clip" else functional.relu(x)
        return functional.relu(self.last(x))


@pytest.mark.parametrize("kind", ["conv", "clip", "scaled", "deconv"])
def test_layers_that_stay_in_float_are_float(kind: str, tmp_path: Path) -> None:
    """ONNX Runtime rounds float weights between DQ and Q by itself, with one step for all of a weight."""
    torch.manual_seed(0)
    data = [torch.randn(8, 16, 8, 8) for _ in range(8)]
    config = {"ignore": [] if kind == "deconv" else ["middle"], "equalize": False}
    result = quantize(OneInFloat(kind).eval(), data, config, out=tmp_path / "int8.onnx", time_it=False)
    assert result.num_quantized == 2
    assert result.agreement_db > 55
    float_products(result.path, tmp_path)
    held = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1 for tensor in held) == 2
