from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Block, batches
from torch import nn

from penjing.export.onnx import export_onnx
from penjing.quantize import QuantizeConfig, quantize
from penjing.quantize.observe import make_observer
from penjing.quantize.ranges import widest


class Pooled(nn.Module):
    """Blocks and a mean over positions, as an encoder of sentences has it."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.block(x)).mean(dim=1)
        return out


def test_widest_is_all_that_was_heard() -> None:
    observer = make_observer("mse")
    values = np.random.default_rng(0).normal(size=(4, 100))
    observer.update(values)
    assert widest({"t": observer}) == {"t": (values.min(), values.max())}


@pytest.mark.parametrize("outlier", [0.0, 40.0])
def test_auto_is_as_good_as_either_kind(outlier: float, tmp_path: Path) -> None:
    """The first position of every sample carries a large value in one channel, or does not."""
    torch.manual_seed(0)
    model = Pooled().eval()
    with torch.no_grad():
        model.block.norm.weight[3] = 1.0 + outlier
    path = export_onnx(model, tmp_path / "m.onnx", torch.zeros(2, 12, 24))
    data = batches(4, 8, (12, 24))
    for batch in data:
        batch[:, 0, 3] += outlier / 4
    found = {
        name: quantize(
            path, data, QuantizeConfig(observer=name), out=tmp_path / f"{name}.onnx", time_it=False
        )
        for name in ("auto", "mse", "min_max")
    }
    best = max(found["mse"].sqnr_db, found["min_max"].sqnr_db)
    assert found["auto"].sqnr_db > best - 1.0
    assert found["auto"].layers[0].observer in {"mse", "min_max"}
