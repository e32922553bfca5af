"""Parameters that only training reads follow what they stand in for there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penjing.graph import couple, trace
from penjing.prune import masked_equivalence, prune


class Masked(nn.Module):
    """A tagger that trains with a learned vector in the place of every second frame."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.randn(width))
        self.table = nn.Parameter(torch.randn(3, width))
        self.unmet = nn.Parameter(torch.randn(7))
        self.before = nn.Linear(10, width)
        self.after = nn.Sequential(nn.Linear(width, 15), nn.ReLU(), nn.Linear(15, 4))

    def forward(self, x_NTF: Tensor) -> Tensor:
        x = self.before(x_NTF)
        if self.training:
            at = torch.arange(x.shape[1]) % 2 == 0
            if torch.rand(()) < 2:  # chance decides: this branch cannot be traced
                at = ~at
            x = torch.where(at[:, None], self.mask + self.table.sum(0) + self.unmet.sum(), x)
        return self.after(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_it_follows_and_the_class_trains(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(4, 6, 10)
    data = None if criterion == "magnitude" else [(x, torch.zeros(4, 6, dtype=torch.int64))]
    loss = None if data is None else (lambda output, batch: output.square().sum())
    result = prune(model, x, ratio=0.4, criterion=criterion, data=data, loss=loss)
    assert result.in_place, result.reason
    kept = result.plan.groups["before.weight:0"].kept
    assert torch.equal(result.model.get_parameter("mask"), model.mask[kept])
    assert torch.equal(result.model.get_parameter("table"), model.table[:, kept])
    assert result.model.get_parameter("unmet").shape == (7,)
    assert result.after["params"] == sum(param.numel() for param in result.model.parameters())
    assert masked_equivalence(model, result, x) < 1e-5
    result.model.train()(x).sum().backward()


def test_it_stays_where_two_widths_could_be_meant_or_it_is_ignored() -> None:
    x = torch.randn(4, 6, 10)
    twice = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 20), nn.Linear(20, 3))

    class Draws(nn.Sequential):
        """Trains by chance, so that nobody knows what it reads then."""

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1 if self.training and torch.rand(()) < 2 else x
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]

    for layers in (twice, Draws(*twice)):
        layers.idle = nn.Parameter(torch.randn(20))
        assert "idle:0" in {name for frozen in couple(trace(layers, x)).frozen for name in frozen.params}
    ignored = couple(trace(Masked(), x), ignore=["mask"])
    assert {group.id for group in ignored.groups} == {"before.weight:0", "after.0.weight:0"}
    assert "mask:0" in {name for frozen in ignored.frozen for name in frozen.params}
