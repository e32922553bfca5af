"""A residual add and the layer norm after it stay apart in ONNX Runtime, whose fused kernel is slow."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from penjing.quantize import quantize


class Block(nn.Module):
    """A post-norm feed-forward block."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_NTC: Tensor) -> Tensor:
        """Tokens to tokens."""
        out: Tensor = self.norm(x_NTC + self.down(nn.functional.gelu(self.up(x_NTC))))
        return out


def test_the_sum_is_not_fused(tmp_path: Path) -> None:
    """The file adds by Sum, and the optimized graph has no SkipLayerNormalization."""
    torch.manual_seed(0)
    data = [torch.randn(4, 16, 64) for _ in range(4)]
    out = quantize(Block().eval(), data, out=tmp_path / "int8.onnx", time_it=False).path
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count("Sum") == 1
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    optimized = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "LayerNormalization" in optimized
    assert "SkipLayerNormalization" not in optimized
