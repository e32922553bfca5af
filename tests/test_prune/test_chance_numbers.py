"""Several numbers that have the size of a pruned axis by chance."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.graph import couple, trace
from penjing.prune.allocate import allocate
from penjing.prune.apply import carry_out
from penjing.prune.criteria import Material, make_criterion
from penjing.prune.follow import follow
from penjing.prune.masked import masked_equivalence
from penjing.prune.slicing.graph import slice_graph
from penjing.prune.slots import by_leaf


class Patches(nn.Module):
    """Takes images of one size only, whose height is the width of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape, self.width = (32, 16), 32
        self.cut = nn.Conv2d(3, 32, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != tuple(self.image_shape):
            raise ValueError(f"an image of {tuple(x.shape[2:])}")
        made: Tensor = self.cut(x).view(x.shape[0], self.width, -1).transpose(1, 2)
        return made


class Attention(nn.Module):
    """Attends among as many tokens as its heads are wide."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_width, self.tokens = 4, 8, 8
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(len(x), self.tokens, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        made = ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v
        out: Tensor = self.out(made.transpose(1, 2).reshape(len(x), self.tokens, -1))
        return out


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.head = Patches(), Attention(), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        made: Tensor = self.head((x + self.attention(x)).mean(1))
        return made


def test_numbers_that_are_sizes_by_chance_are_given_back_one_after_another() -> None:
    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(2, 3, 32, 16)
    result = pj.prune(model, x, ratio=0.4)
    assert result.in_place, result.reason
    pruned = result.model
    assert isinstance(pruned, Both)
    assert pruned.patches.image_shape == (32, 16)
    assert pruned.attention.tokens == 8
    assert pruned.patches.width == pruned.patches.cut.out_channels < 32
    assert pruned.attention.head_width < 8
    assert masked_equivalence(model, result, x) < 1e-5


def test_choices_of_numbers_are_tried_on_one_sliced_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    sliced: list[Any] = []

    def counted(*given: Any) -> Any:
        sliced.append(slice_graph(*given))
        return sliced[-1]

    monkeypatch.setattr(sys.modules["penjing.prune.apply"], "slice_graph", counted)
    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(2, 3, 32, 16)
    graph = trace(model, x)
    coupling = couple(graph)
    scores = make_criterion("magnitude").scores(Material(model, graph, coupling))
    kept = by_leaf(coupling, allocate(coupling.groups, scores, ratio=0.4))
    right = follow(model, graph, coupling, kept)
    done = carry_out(model, graph, coupling, kept, [(), right], x)
    assert done.in_place
    assert set(done.attributes) < set(right)  # without those that had a size by chance
    assert len(sliced) == 1
    failed = carry_out(model, graph, coupling, kept, [(), ()], x)
    assert not failed.in_place
    assert "test_chance_numbers.py" in failed.reason
