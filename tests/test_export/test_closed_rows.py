"""Attention whose mask closes a row to all: zeros in torch, and in every file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_models import needs_tensorflow
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj


class Padded(nn.Module):
    """Positions that are kept look at one another; the mean is over all of them."""

    def __init__(self, heads: str, is_bool: bool) -> None:
        super().__init__()
        self.into, self.heads, self.is_bool = nn.Linear(8, 8), heads, is_bool

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        mask = keep[:, :, None] & keep[:, None, :]
        if not self.is_bool:
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, float("-inf"))
        q = self.into(x)
        if self.heads == "none":
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask).mean(1)
        q = q.unflatten(-1, (4, 2)).transpose(1, 2)
        k = q[:, :2] if self.heads == "grouped" else q
        mixed = F.scaled_dot_product_attention(
            q, k, k, attn_mask=mask[:, None], enable_gqa=self.heads == "grouped"
        )
        return mixed.mean(2)


@pytest.mark.tf
@needs_tensorflow
@pytest.mark.parametrize("is_bool", [True, False])
@pytest.mark.parametrize("heads", ["none", "four", "grouped"])
def test_a_row_that_is_closed_gives_zeros(heads: str, is_bool: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    keep = torch.ones(3, 5, dtype=torch.bool)
    keep[1, 3:] = False
    made = pj.export(
        Padded(heads, is_bool).eval(),
        tmp_path,
        formats=("onnx", "saved_model"),
        example_inputs=(torch.randn(3, 5, 8), keep),
    )
    assert made.ok
