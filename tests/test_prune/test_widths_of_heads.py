"""Numbers that a class writes into several shapes, and what is kept so that it can go on doing so."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.graph import couple, trace
from penjing.prune import prune
from penjing.prune.allocate import Scope
from penjing.prune.masked import masked_equivalence
from penjing.prune.slots import by_leaf
from penjing.prune.torn import torn


class HeadsInTheShapeOfTheirInput(nn.Module):
    """Attention over an image that gives what its heads hold the shape of what it was given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.value = heads, width // heads
        self.key = self.value // 2
        self.qkv = nn.Conv2d(width, width + 2 * self.key * heads, 1)
        self.proj, self.near = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, 1, 1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, across = x.shape
        qkv = self.qkv(x).view(batch, self.heads, 2 * self.key + self.value, height * across)
        q, k, v = qkv.split([self.key, self.key, self.value], dim=2)
        seen = (q.transpose(-2, -1) @ k * self.key**-0.5).softmax(-1)
        mixed = (v @ seen.transpose(-2, -1)).view(batch, width, height, across)
        y: Tensor = self.proj(mixed + self.near(v.reshape(batch, width, height, across)))
        return y


def test_a_width_becomes_what_the_heads_keep_where_one_is_written_as_the_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), HeadsInTheShapeOfTheirInput(64, 2), nn.Conv2d(64, 4, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    result = prune(model, x, ratio=0.4)  # the width alone would keep 39, the heads 2 × 20
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    attention = result.model[1]  # type: ignore[index]
    assert isinstance(attention, HeadsInTheShapeOfTheirInput)
    assert (attention.heads, attention.value, attention.qkv.in_channels) == (2, 20, 40)
    assert result.after["params"] < 0.5 * result.before["params"]


def test_what_a_layer_of_torch_is_given_and_gives_may_differ() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    coupling = couple(graph)
    first, second = (group.id for group in coupling.groups)
    kept = by_leaf(coupling, {first: np.arange(3), second: np.arange(4)})
    assert torn(model, graph, coupling, kept) == ()


class Layer(nn.Module):
    """Attention with a head size of its own that writes the width it was given for what its heads hold."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, self.size).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        seen = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        y: Tensor = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return y


@pytest.mark.parametrize("scope", ["local", "global"])
def test_layers_that_share_a_stream(scope: Scope) -> None:
    torch.manual_seed(0)
    layers = [Layer(32, 4), Layer(32, 4)]
    model = nn.Sequential(nn.Linear(6, 32), *layers, nn.Linear(32, 3)).eval()
    x = torch.randn(2, 5, 6)
    result = prune(model, x, ratio=0.4, scope=scope)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5


class PartlyAttended(nn.Module):
    """Splits what it is given in two by one number; attention sees the second part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = width // 2
        self.split, self.join = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attention = HeadsInTheShapeOfTheirInput(self.narrow, 2)

    def forward(self, x: Tensor) -> Tensor:
        plain, seen = self.split(x).split((self.narrow, self.narrow), dim=1)
        y: Tensor = self.join(torch.cat((plain, seen + self.attention(seen)), 1))
        return y


def test_what_has_the_size_of_a_width_that_is_settled_keeps_as_much() -> None:
    """By heads, by a ratio of its own, or as it is ignored: the mean of both is not that in any round."""
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 96, 3), nn.Conv2d(96, 96, 3, padding=1), nn.Conv2d(96, 128, 1))
    model = nn.Sequential(nn.Sequential(*body), PartlyAttended(128), nn.Conv2d(128, 4, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    options: dict[str, Any]
    for options in (
        {"ratios": {"1.attention.qkv.weight:0*": 0.0}},  # heads
        {"ratios": {"1.attention.qkv*": 0.0}},  # and what they are given
        {"ignore": "1.attention*"},
    ):
        result = prune(model, x, ratio=0.4, **options)
        assert result.in_place, (options, result.reason)
        assert masked_equivalence(model, result, x) < 1e-5
        part = result.model[1]  # type: ignore[index]
        assert isinstance(part, PartlyAttended)
        assert (part.narrow, part.attention.qkv.in_channels, part.join.in_channels) == (64, 64, 128)
        assert part.split.in_channels < 128
