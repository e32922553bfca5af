"""What a later round of pruning knows of the rounds before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penjing.prune import prune
from penjing.recipe.stages.pruning import _own_ratios, _widths


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        answer: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return answer


def test_own_ratios_are_taken_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ratios = {"1.weight": 0.3, "1.weight:0": 0.4, "2.*": 0.5}
    assert _own_ratios(ratios, model, is_first=True) == ratios
    assert _own_ratios(ratios, model, is_first=False) == {"1.weight": 0.0, "1.weight:0": 0.0}


def test_widths_are_of_the_original_by_its_names() -> None:
    """One head is left after the first round: its slots go by another id in the second."""
    x = torch.randn(2, 3, 6)
    first = prune(Heads(), x, ratios={"*:*": 0.5})  # of heads and of their sizes
    second = prune(first.model, x, 0.5)
    plan = first.plan.then(second.plan)
    widths = {w["name"]: (w["before"], w["after"]) for w in _widths(first.groups, plan)}
    assert widths == {"q.weight:0#0": (2, 1), "q.weight:0#1": (4, 1), "v.weight:0#1": (4, 1)}
