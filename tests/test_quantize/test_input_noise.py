"""The predicted noise of a layer is what its formula says, however its weights are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from penjing.export.onnx import export_onnx
from penjing.quantize import input_noise
from penjing.quantize.input_noise import InputWeights, total_noise
from penjing.quantize.prepare import load_onnx, prepare
from penjing.quantize.rules import WEIGHT_OPS


class _Product(nn.Module):
    """A matrix product without a bias, in three dimensions: MatMul, stored inputs by outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(-1, 1, 6))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 10), (6,)),
        (_Product(), (6,)),
        (nn.Conv2d(6, 10, 3), (6, 8, 8)),
        (nn.Conv2d(6, 10, 3, groups=2), (6, 8, 8)),
        (nn.Conv2d(6, 6, 3, groups=6), (6, 8, 8)),
    ],
)
@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_noise_is_what_the_formula_says(
    layer: nn.Module, shape: tuple[int, ...], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_noise, "_BLOCK", block)
    torch.manual_seed(0)
    with torch.no_grad():
        next(layer.parameters())[1] = 0.0  # an output that reads nothing
    written = export_onnx(layer.eval(), tmp_path / "fp32.onnx", torch.zeros(2, *shape))
    graph = prepare(load_onnx(written)).graph
    node = next(node for node in graph if node.op_type in WEIGHT_OPS)
    rng = np.random.default_rng(0)
    range_C, factor_C = rng.uniform(0.5, 4, 6), rng.uniform(0.25, 4, 6)
    power_C = range_C**2 / 3

    linear = next(m for m in layer.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    w = linear.weight.detach().double().numpy()
    groups = getattr(linear, "groups", 1)
    expected = signal = 0.0
    step = (range_C / factor_C).max() / 255
    for row in range(len(w)):
        first = row // (len(w) // groups) * w.shape[1]
        reads = slice(first, first + w.shape[1])
        norms = np.sqrt(np.square(w[row].reshape(w.shape[1], -1)).sum(1))
        used = norms > 0
        expected += step**2 * np.square(norms * factor_C[reads]).sum()
        expected += ((norms * factor_C[reads]).max() / 127) ** 2 * (power_C / factor_C**2)[reads][used].sum()
        signal += (np.square(norms) * power_C[reads]).sum()
    found = total_noise([InputWeights.of(node)] * 2, factor_C, range_C, power_C)
    assert found == pytest.approx(2 * expected / (12 * signal), rel=1e-5)
