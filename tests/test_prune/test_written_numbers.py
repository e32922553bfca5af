"""Sizes that a forward writes into shapes as numbers which its module does not have: they stay, and the class
serves, where that costs little.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.prune import Budget, prune
from penjing.prune.masked import masked_equivalence


class Polynomial(nn.Module):
    """A layer of Chebyshev polynomials: it knows their degree, and writes that plus one."""

    def __init__(self, inputs: int, outputs: int, degree: int = 5) -> None:
        super().__init__()
        self.inputs, self.degree = inputs, degree
        self.coefficients = nn.Parameter(torch.randn(inputs, outputs, degree + 1) * 0.3)
        self.register_buffer("powers", torch.arange(degree + 1.0))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.powers, Tensor)
        angle = x.tanh().mul(0.99).acos().view(-1, self.inputs, 1).expand(-1, -1, self.degree + 1)
        return torch.einsum("bid,iod->bo", (angle * self.powers).cos(), self.coefficients)


class Bins(nn.Module):
    """A head that gives four sides as the mean over eight bins each, beside scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sides, self.scores = nn.Conv1d(width, 32, 1), nn.Conv1d(width, 3, 1)
        self.mean = nn.Conv2d(8, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        sides, scores = torch.split(torch.cat([self.sides(x), self.scores(x)], 1), [32, 3], 1)
        shares = sides.view(len(x), 4, 8, -1).transpose(1, 2).softmax(1)
        return torch.cat([self.mean(shares).squeeze(1), scores], 1)


def detector() -> nn.Module:
    body = (nn.Conv1d(4, 64, 3), nn.ReLU(), nn.Conv1d(64, 64, 1), nn.ReLU(), nn.Conv1d(64, 32, 1), nn.ReLU())
    return nn.Sequential(*body, Bins(32)).eval()


def test_a_number_derived_in_the_forward_keeps_what_it_says() -> None:
    torch.manual_seed(0)
    layers = (Polynomial(7, 40), nn.LayerNorm(40), Polynomial(40, 40), nn.LayerNorm(40), Polynomial(40, 3))
    model, x = nn.Sequential(*layers).eval(), torch.randn(4, 7)
    result = prune(model, x, ratio=0.4)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    first = result.model[0]  # type: ignore[index]
    assert isinstance(first, Polynomial)
    assert first.coefficients.shape == (7, 24, 6)


def test_a_number_written_in_the_forward_stays_though_an_input_is_as_wide() -> None:
    torch.manual_seed(0)
    model, x = detector(), torch.randn(2, 4, 9)
    result = prune(model, x, ratio=0.4)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    assert result.model[6].sides.weight.shape == (32, 20, 1)  # type: ignore[index]
    assert "sides#1 8 instead of 5" in result.evened


class Tutorial(nn.Module):
    """The network of torch's own tutorial: it flattens to a number, and most weights read what that is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))), 2).view(-1, 400)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))  # type: ignore[no-any-return]


def test_a_class_is_no_reason_to_leave_most_of_a_network_as_it_is() -> None:
    torch.manual_seed(0)
    result = prune(Tutorial().eval(), torch.randn(2, 3, 32, 32), ratio=0.5)
    assert not result.in_place
    assert {name: len(edit.kept) for name, edit in result.plan.groups.items()} == {
        "conv1.weight:0": 3,
        "conv2.weight:0": 8,
        "fc1.weight:0": 60,
        "fc2.weight:0": 42,
    }
    assert not result.evened


def test_under_a_budget_numbers_written_in_a_forward_stop_nothing() -> None:
    torch.manual_seed(0)
    model, x = detector(), torch.randn(2, 4, 9)
    result = prune(model, x, budget=Budget(params=0.4))
    assert not result.in_place
    assert len(result.plan.groups["6.sides.weight:0#1"].kept) < 8
