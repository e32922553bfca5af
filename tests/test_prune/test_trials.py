"""Which numbers a forward reads is found by taking them away."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from penjing.prune.plan import AttributeEdit
from penjing.prune.trials import Trials

NAMES = ("depth", "heads", "limit", "width", "window")
KINDS = [(AttributeEdit("", name, 8, 4),) for name in NAMES]


class Noting(nn.Module):
    """Holds a number of each name, and reads some; all runs are counted together."""

    count = 0

    def __init__(self, read: tuple[str, ...]) -> None:
        super().__init__()
        self.read = read
        for name in NAMES:
            setattr(self, name, 4)

    def forward(self, x: Tensor) -> Tensor:
        Noting.count += 1
        return x + sum(int(getattr(self, name)) for name in self.read)


@pytest.mark.parametrize("read", [some for n in range(len(NAMES) + 1) for some in combinations(NAMES, n)])
def test_what_is_not_read_is_found_and_everything_put_back(read: tuple[str, ...]) -> None:
    model = Noting(read)
    found = Trials(model, torch.zeros(1, 2)).unread(KINDS)
    assert [kind[0].name for kind in found] == [name for name in NAMES if name not in read]
    assert all(getattr(model, name) == 4 for name in NAMES)


def test_numbers_that_are_only_noted_take_one_run_together() -> None:
    Noting.count = 0
    Trials(Noting(()), torch.zeros(1, 2)).unread(KINDS)
    assert Noting.count == 2  # the one to compare with, and one without all of them


def test_other_numbers_are_tried_against_what_the_model_gave_at_first() -> None:
    trials = Trials(Noting(("width",)), torch.zeros(1, 2))
    assert trials.is_same_with((AttributeEdit("", "depth", 4, 8),))
    assert not trials.is_same_with((AttributeEdit("", "width", 4, 8),))
    assert trials.is_same_with((AttributeEdit("", "width", 8, 4),))
