"""Tables that modules keep as plain tensors, which are none of their parameters or buffers."""

import copy

import torch
from torch import Tensor, nn

from penjing.prune import apply_, prune
from penjing.prune.masked import masked_equivalence
from penjing.prune.result import PruneResult


class Encodings(nn.Module):
    """Sines for each position, made anew where an input is longer than any before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.table = width, torch.zeros(0, width)
        self.extend(8)

    def extend(self, length: int) -> None:
        if len(self.table) < length:
            at = torch.arange(length).unsqueeze(1) * torch.logspace(0, -3, self.width)
            self.table = at.sin()

    def forward(self, x: Tensor) -> Tensor:
        self.extend(x.shape[1])
        return self.table[: x.shape[1]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.encodings = nn.Linear(6, 24), Encodings(24)
        self.place, self.body, self.last = nn.Linear(24, 24), nn.Linear(24, 40), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.place(self.encodings(x))
        z: Tensor = self.last(self.body(y.relu()).relu())
        return z


def pruned() -> tuple[Net, Tensor, PruneResult]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 5, 6)
    return model, x, prune(model, x, ratio=0.4)


def test_the_width_of_a_plain_tensor_stays_and_the_class_serves() -> None:
    model, x, result = pruned()
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    assert isinstance(result.model, Net)
    assert result.model.place.weight.shape == (15, 24)


def test_the_class_still_makes_a_longer_table() -> None:
    _, _, result = pruned()
    assert isinstance(result.model, Net)
    assert result.model(torch.randn(2, 30, 6)).shape == (2, 30, 3)
    assert result.model.encodings.table.shape == (30, 24)


class Fixed(nn.Module):
    """Adds its table to what flows past, as ViTs do with sines of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.table = (torch.arange(8).unsqueeze(1) * torch.logspace(0, -3, 24)).sin()
        self.order = torch.arange(23, -1, -1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.table[: x.shape[1]].to(x.dtype)
        y = y + self.body(y.relu())
        found: Tensor = self.last(y.index_select(-1, self.order).relu())
        return found


def test_a_table_that_only_init_sets_is_sliced_with_its_class() -> None:
    torch.manual_seed(0)
    model, x = Fixed().eval(), torch.randn(2, 5, 6)
    result = prune(model, x, ratio=0.4)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    assert isinstance(result.model, Fixed)
    assert (result.model.table.shape, model.table.shape) == ((8, 15), (8, 24))
    assert result.model(torch.randn(2, 8, 6)).shape == (2, 8, 3)
    again = apply_(copy.deepcopy(model), result.plan, x)
    torch.testing.assert_close(again(x), result.model(x))
