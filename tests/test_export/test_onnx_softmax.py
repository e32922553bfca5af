"""What is masked in a softmax is held where floats are normal, and only what is masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing.export as pe
from penjing.export.onnx_softmax import floor_masked
from penjing.quantize import quantize
from penjing.quantize.prepare import load_onnx, prepare


class Attention(nn.Module):
    """One head over ``NTC``, masked in one of the ways that models use."""

    def __init__(self, kind: str, axis: int = -1) -> None:
        super().__init__()
        self.qk = nn.Linear(8, 16)
        self.kind, self.axis = kind, axis

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Tokens ``NTC`` and the mask ``NT`` of ones and zeros to weights ``NTT``."""
        q, k = self.qk(x).chunk(2, -1)
        scores = q @ k.transpose(1, 2)
        if self.kind == "causal":
            return F.scaled_dot_product_attention(q, k, x, is_causal=True) * keep[:, :, None]
        if self.kind == "added":
            scores = scores + (1.0 - keep[:, None, :]) * -1e4
        elif self.kind == "lowest":
            scores = scores + (1.0 - keep[:, None, :]) * torch.finfo(torch.float32).min
        elif self.kind == "filled":
            scores = scores.masked_fill(keep[:, None, :] == 0, float("-inf"))
        else:
            scores = scores * keep[:, None, :]
        return torch.softmax(scores, self.axis)


def operators(path: Path) -> list[str]:
    """Kinds of the nodes of a file."""
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("kind", ["added", "lowest", "filled", "causal", "none"])
def test_masked_weights_are_normal_numbers(kind: str, axis: int, tmp_path: Path) -> None:
    """The exported weights are the model's; no intermediate that is masked ends as a denormal number."""
    torch.manual_seed(0)
    model = Attention(kind, axis).eval()
    x, keep = torch.randn(3, 7, 8), torch.tensor([[1.0] * 7, [1.0] * 4 + [0.0] * 3, [1.0] + [0.0] * 6])
    path = pe.export_onnx(model, tmp_path / "m.onnx", (x, keep))
    assert operators(path).count("Max") == (kind != "none")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [info.name for info in session.get_inputs()]
    # another batch than the example's, with a row in which everything is masked
    x, keep = torch.cat([x, x]), torch.cat([keep, 1 - keep])
    found = session.run(None, dict(zip(names, (x.numpy(), keep.numpy()), strict=True)))[0]
    wanted = model(x, keep).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    if kind != "none":
        assert not np.any((np.abs(found) > 0) & (np.abs(found) < np.finfo(np.float32).tiny))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_files_of_others_are_held_when_quantized(opset: int, tmp_path: Path) -> None:
    """A file without any types inside; what was held already is not held again."""
    weight = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        m (float[N,7] x, int64[N,7] keep) => (float[N,5] y) <float one = {{1.0}}, float low = {{-10000.0}}> {{
            seen = Cast<to = 1>(keep)
            left = Sub(one, seen)
            mask = Mul(left, low)
            scores = Add(x, mask)
            p = Softmax(scores)
            y = MatMul(p, w)
        }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    source = tmp_path / "theirs.onnx"
    onnx.save(proto, source)
    rng = np.random.default_rng(1)
    data = [(rng.normal(size=(8, 7)).astype(np.float32), rng.integers(0, 2, (8, 7))) for _ in range(4)]
    out = quantize(source, data, out=tmp_path / "int8.onnx", time_it=False)
    assert operators(out.path).count("Max") == 1
    assert out.sqnr_db > 30
    held = floor_masked(graph := prepare(load_onnx(source)).graph)
    assert held == 0, [node.op_type for node in graph]
