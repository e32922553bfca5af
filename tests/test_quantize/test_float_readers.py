"""A layer whose float output another reads beside an 8-bit layer still runs in an int8 kernel."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
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
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(result.path), options, providers=["CPUExecutionProvider"])
    found = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not found & {"Gemm", "MatMul", "FusedGemm", "FusedMatMul"}
