"""Widths that a kernel takes in steps only: torch's grouped product wants rows of whole 16 bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penjing.graph import couple, trace
from penjing.prune import masked_equivalence, prune

pytest.importorskip("transformers.integrations.moe", reason="the transformers package defines the op")


def product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """As transformers chooses: torch's kernel has no tracing of float32."""
    if torch.compiler.is_compiling():
        return torch.ops.transformers.grouped_mm_fallback(rows, weight, ends)  # type: ignore[no-any-return]
    return torch._grouped_mm(rows, weight, offs=ends)


class Experts(nn.Module):
    """Every row goes to the expert of its place, between two layers; sizes in (E, K, N)."""

    def __init__(self, width: int = 24, hidden: int = 36, experts: int = 2) -> None:
        super().__init__()
        self.before = nn.Linear(10, width)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) / hidden**0.5)
        self.after = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.before(x)
        ends = torch.tensor([4, 8], dtype=torch.int32)
        inside = torch.relu(product(rows, self.up, ends))
        return self.after(rows + product(inside, self.down, ends))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 4), (torch.bfloat16, 8)])
def test_groups_behind_a_grouped_product_have_steps_of_its_rows(dtype: torch.dtype, step: int) -> None:
    torch.manual_seed(0)
    coupling = couple(trace(Experts(hidden=40).to(dtype), torch.randn(8, 10, dtype=dtype)))
    assert {group.id: group.step for group in coupling.groups} == {"up:1": step, "up:2": step}


@pytest.mark.parametrize("round_to", [1, 6])
def test_the_class_serves_and_has_gradients(round_to: int) -> None:
    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(8, 10)
    result = prune(model, x, ratio=0.4, round_to=round_to)
    assert result.in_place, result.reason
    kept = {name: len(edit.kept) for name, edit in result.plan.groups.items()}
    assert kept == ({"up:1": 16, "up:2": 24} if round_to == 1 else {"up:2": 24})
    assert masked_equivalence(model, result, x) < 1e-5
    result.model.train()(x).sum().backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in result.model.parameters())
