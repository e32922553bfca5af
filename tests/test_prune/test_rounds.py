"""The ratio that rounds reach together, whatever becomes of single groups on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penjing.prune.allocate import Scope
from penjing.prune.gradual import prune_gradually
from penjing.recover import RecoverConfig

IDLE = RecoverConfig(epochs=0)


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 20), nn.Linear(20, 2)
        self.reduce, self.expand = nn.Linear(20, 4), nn.Linear(4, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        answer: Tensor = self.head(h * self.expand(self.reduce(h).relu()).sigmoid())
        return answer


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(6, 12),
            nn.Linear(6, 12),
            nn.Linear(6, 12),
            nn.Linear(12, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        answer: Tensor = self.out(mixed.transpose(1, 2).flatten(2)).mean(1)
        return answer


@pytest.mark.parametrize(
    ("make", "shape", "scope"),
    [
        (Squeezed, (8, 6), "local"),
        (Squeezed, (8, 6), "global"),
        (Squeezed, (8, 6), "isomorphic"),
        (Heads, (8, 5, 6), "local"),
    ],
)
def test_many_rounds_remove_as_much_as_one(
    make: type[nn.Module], shape: tuple[int, ...], scope: Scope
) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    data = [(x, torch.arange(8) % 2)]
    left = []
    for rounds in (1, 3):
        result = prune_gradually(model, x[:2], data, data, 0.8, rounds=rounds, scope=scope, config=IDLE)
        assert result.plan is not None
        left.append({key: len(edit.kept) for key, edit in result.plan.groups.items()})
    if scope == "local":
        assert left[0] == left[1]
        assert 1 in left[0].values()  # a group that is none any more in the last rounds
    else:  # the scores of what is left may order otherwise
        assert sum(left[0].values()) == sum(left[1].values())
