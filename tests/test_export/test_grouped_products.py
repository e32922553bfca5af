"""Mixtures of experts whose rows are sorted by expert and multiplied in one call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import penjing as pj

pytest.importorskip("transformers.integrations.moe", reason="the transformers package defines the op")


class Experts(nn.Module):
    """Each row goes to one expert of five; the fourth gets none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(16, 5)
        self.weight = nn.Parameter(torch.randn(5, 16, 12))
        with torch.no_grad():
            self.gate.bias[3] = -100

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(1)
        order = chosen.argsort(stable=True)
        counts = (chosen[:, None] == torch.arange(5)).sum(0)
        sorted_out = torch.ops.transformers.grouped_mm_fallback(x[order], self.weight, counts.cumsum(0))
        return sorted_out[order.argsort()]  # type: ignore[no-any-return]


def test_every_row_meets_its_expert_at_any_batch(tmp_path: Path) -> None:
    model, x = Experts().eval(), torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([row @ model.weight[model.gate(row).argmax()] for row in x])
        torch.testing.assert_close(model(x), expected)
    files = pj.export(model, tmp_path, ("onnx", "saved_model"), example_inputs=x, batch_sizes=(1, 3, 8))
    assert max(row.relative for file in files.files for row in file.verification.rows) < 1e-5


class StablySorted(nn.Module):
    """Few values, so that most are equal to another."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = (2 * x).round()
        up = levels.sort(dim=1, stable=True)
        return up.values, up.indices, levels.argsort(dim=-1, descending=True, stable=True)


def test_equal_values_keep_their_order(tmp_path: Path) -> None:
    x = torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(2))
    files = pj.export(StablySorted().eval(), tmp_path, ("onnx", "saved_model"), example_inputs=x)
    assert max(row.max_abs for file in files.files for row in file.verification.rows) == 0
