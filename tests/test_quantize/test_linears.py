from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from nets import batches
from torch import nn
from torch.nn import functional

from penjing.errors import QuantizeError, RecipeError
from penjing.export.onnx import export_onnx
from penjing.quantize import QuantizeConfig, load_quantized, quantize, read_header

SHAPE = (5, 40)


class Mlp(nn.Module):
    """A 3-D linear (MatMul and Add), then a 2-D one (Gemm); 40 inputs are no multiple of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(40, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(functional.gelu(self.up(x)).mean(dim=1))
        return out


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export_onnx(Mlp().eval(), tmp_path_factory.mktemp("f") / "fp32.onnx", torch.zeros(2, *SHAPE))


MODES: list[tuple[dict[str, Any], str, float]] = [
    ({"mode": "dynamic"}, "MatMulInteger", 32.0),
    ({"mode": "weight_only"}, "DequantizeLinear", 38.0),
    ({"mode": "weight_only", "weight_bits": 4}, "MatMulNBits", 16.0),
    ({"mode": "weight_only", "weight_bits": 4, "block": 16, "rounding": "nearest"}, "MatMulNBits", 16.0),
]


@pytest.mark.parametrize(("options", "op", "least"), MODES, ids=["dynamic", "w8", "w4", "w4-nearest"])
def test_linears_in_few_bits(
    fp32: Path, options: dict[str, Any], op: str, least: float, tmp_path: Path
) -> None:
    made = quantize(
        fp32, batches(3, shape=SHAPE), QuantizeConfig(**options), out=tmp_path / "q.onnx", time_it=False
    )
    graph = onnx.load(made.path).graph
    assert sum(node.op_type == op for node in graph.node) == 2
    assert not any(node.op_type == "Gemm" for node in graph.node)
    assert made.num_quantized == 2
    assert made.sqnr_db > least
    x = batches(1, 16, SHAPE, seed=7)[0]
    wanted, found = run(fp32, x), run(made.path, x)
    assert 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()) > least
    largest = max(t.ByteSize() for t in graph.initializer)
    assert largest < (64 * 64 / 2 if options.get("weight_bits") == 4 else 64 * 40) + 100


@pytest.mark.parametrize("bits", [8, 4])
def test_the_weights_file_holds_what_the_file_computes_with(fp32: Path, bits: int, tmp_path: Path) -> None:
    """The float network with the stored weights put in answers as the written file does."""
    config = QuantizeConfig(mode="weight_only", weight_bits=bits)
    made = quantize(fp32, batches(2, shape=SHAPE), config, out=tmp_path / "q.onnx", time_it=False)
    weights = load_quantized(made.weights_path)
    model = onnx.load(fp32)
    for tensor in model.graph.initializer:
        layers = {row["weight"] for row in read_header(made.weights_path)["layers"]}
        if tensor.name in layers:
            old = onnx.numpy_helper.to_array(tensor)
            new = weights[tensor.name]
            turned = new if new.shape == old.shape else new.T
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), tensor.name))
    onnx.save(model, tmp_path / "again.onnx")
    x = batches(1, 16, SHAPE, seed=7)[0]
    wanted, found = run(tmp_path / "again.onnx", x), run(made.path, x)
    # ONNX Runtime's kernels for weights of few bits round activations to 8 bits a block on their way.
    np.testing.assert_allclose(found, wanted, atol=2e-2 * np.abs(wanted).max())


def test_a_network_without_linears_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(QuantizeError, match="no linear or recurrent layer or table"):
        quantize(model, batches(1), QuantizeConfig(mode="dynamic"), out=tmp_path / "q.onnx", time_it=False)


def test_impossible_options_are_named() -> None:
    with pytest.raises(RecipeError, match="takes weight_bits of 4, 8"):
        QuantizeConfig.parse({"mode": "weight_only", "weight_bits": 3})
    with pytest.raises(RecipeError, match="max_drop"):
        QuantizeConfig.parse({"mode": "dynamic", "max_drop": 0.01})
