"""Classes serve although a forward takes a width for granted: it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.graph import couple, trace
from penjing.prune import prune
from penjing.prune.compare import relative_error, run
from penjing.prune.masked import masked_equivalence, masked_output
from penjing.prune.slots import slots_of


class Between(nn.Module):
    """A layer between two convolutions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.layer = layer
        self.b = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.layer(self.a(x))))
        return y


class OneHead(nn.Module):
    """Attention over places as latent diffusion writes it: scale and shapes by the width of q."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        b, c, h, w = q.shape
        scores = torch.bmm(q.reshape(b, c, h * w).permute(0, 2, 1), k.reshape(b, c, h * w))
        weights = F.softmax(scores * (int(c) ** (-0.5)), dim=2)
        found = torch.bmm(v.reshape(b, c, h * w), weights.permute(0, 2, 1)).reshape(b, c, h, w)
        y: Tensor = x + self.out(found)
        return y


class NonLocal(nn.Module):
    """One number for what is compared and for what is summed."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inner = 10
        self.theta, self.phi, self.g = (nn.Conv2d(width, self.inner, 1) for _ in range(3))
        self.out = nn.Conv2d(self.inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, *size = x.shape
        g = self.g(x).view(n, self.inner, -1).permute(0, 2, 1)
        theta = self.theta(x).view(n, self.inner, -1).permute(0, 2, 1)
        pairs = torch.matmul(theta, self.phi(x).view(n, self.inner, -1)) / theta.shape[-1] ** 0.5
        y = torch.matmul(pairs.softmax(-1), g).permute(0, 2, 1).reshape(n, self.inner, *size)
        out: Tensor = x + self.out(y)
        return out


class Correlation(nn.Module):
    """Every place of one map with every place of the other, as optical flow compares them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 20, 1))
        self.up = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.body(x), self.body(x.flip(-1))
        b, dim, h, w = one.shape
        volume = torch.einsum("bci,bcj->bij", one.view(b, dim, h * w), two.view(b, dim, h * w))
        level = (volume / torch.sqrt(torch.tensor(dim).float())).mean(-1).view(b, 1, h, w)
        y: Tensor = self.up(x) * torch.sigmoid(level)
        return y


class Given(nn.Module):
    """A stream that is given and given back: what all heads hold together gets its shape (LED's decoder)."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.head_dim = heads, width // heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = (
            layer(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + self.out(found)
        y: Tensor = x + self.down(F.gelu(self.up(x)))
        return y


class Divided(nn.Module):
    """A number of which the forward writes only a quotient into shapes (deformable attention's values)."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.width = heads, width
        self.value, self.gate, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, heads),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = (x + x.flip(1)) * 0.5  # more values of the same width, which stay
        value = self.value(x).view(b, n, self.heads, self.width // self.heads)
        weights = self.gate(x).softmax(1).view(b, n, self.heads, 1)
        y: Tensor = x + self.out((value * weights).flatten(2))
        return y


def test_heads_that_are_given_the_shape_of_the_stream_stay() -> None:
    model, x = Given().eval(), torch.randn(2, 5, 24)
    result = prune(model, x, ratio=0.5)
    assert result.in_place, result.reason
    assert set(result.plan.groups) == {"up.weight:0"}
    assert masked_equivalence(model, result, x) <= 1e-5


def test_a_number_that_is_only_divided_follows() -> None:
    model, x = Divided().eval(), torch.randn(2, 5, 24)
    result = prune(model, x, ratio=0.5)
    assert result.in_place, result.reason
    pruned: Any = result.model
    assert (pruned.width, pruned.value.out_features, pruned.out.out_features) == (12, 12, 24)
    assert masked_equivalence(model, result, x) <= 1e-5


@pytest.mark.parametrize("layer", [OneHead, NonLocal, Correlation])
def test_a_width_taken_for_granted_stays_and_the_class_serves(layer: type[nn.Module]) -> None:
    model, x = Between(layer()).eval(), torch.randn(2, 3, 8, 8)
    result = prune(model, x, ratio=0.5)
    assert result.in_place, result.reason
    assert result.after["params"] < 0.75 * result.before["params"]
    larger = torch.randn(3, 3, 12, 8)  # which a graph could not take
    graph = trace(model, larger)
    coupling = couple(graph)
    expected, leak = masked_output(graph, coupling, slots_of(result.plan, coupling), (larger,))
    assert leak <= 1e-4
    assert relative_error(run(result.model, (larger,)), expected) <= 1e-4


def test_what_was_asked_for_is_done_even_if_the_class_cannot_serve() -> None:
    model, x = Between(OneHead()).eval(), torch.randn(2, 3, 8, 8)
    result = prune(model, x, ratio=0.0, ratios={"layer.q.*": 0.5})
    assert not result.in_place
    assert len(result.plan.groups["layer.q.weight:0"].kept) == 8
