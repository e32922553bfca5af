"""Scores that a forward writes out as a product and a sum, divided by the root of a width."""

import torch
from torch import Tensor, nn

from penjing.prune import prune
from penjing.prune.masked import masked_equivalence


class OverEdges(nn.Module):
    """Attention along the edges of a graph: ``(q[to] * k[of]).sum(-1) / sqrt(head size)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)
        self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.heads, self.size = 3, 8

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        of, to = edges
        y = self.first(x).relu()
        q, k, v = (part(y).view(-1, self.heads, self.size) for part in (self.q, self.k, self.v))
        scores = (q[to] * k[of]).sum(-1) / self.size**0.5
        seen = scores.sigmoid().unsqueeze(-1) * v[of]
        mixed = torch.zeros(len(x), self.heads, self.size).index_add_(0, to, seen)
        z: Tensor = self.last(y + mixed.reshape(len(x), -1))
        return z


def test_the_class_serves_with_the_width_that_scores_are_summed_over() -> None:
    torch.manual_seed(0)
    model, inputs = OverEdges().eval(), (torch.randn(7, 6), torch.randint(0, 7, (2, 20)))
    result = prune(model, inputs, ratio=0.4)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, inputs) < 1e-5
    assert isinstance(result.model, OverEdges)
    assert result.model.size == 8
    assert (result.model.heads, result.model.q.in_features) == (2, 16)
