"""Sizes that a forward writes into shapes as numbers which its module does not have: they stay, and the class
serves.
"""

import torch
from torch import Tensor, nn

from penjing.prune import prune
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

    def forward(self, x: Tensor) -> Tensor:
        sides, scores = torch.split(torch.cat([self.sides(x), self.scores(x)], 1), [32, 3], 1)
        shares = sides.view(len(x), 4, 8, -1).softmax(2)
        return torch.cat([(shares * torch.arange(8.0).view(8, 1)).sum(2), scores], 1)


def test_a_number_derived_in_the_forward_keeps_what_it_says() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Polynomial(7, 20), nn.LayerNorm(20), Polynomial(20, 3)).eval(), torch.randn(4, 7)
    result = prune(model, x, ratio=0.4)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    first = result.model[0]  # type: ignore[index]
    assert isinstance(first, Polynomial)
    assert first.coefficients.shape == (7, 12, 6)


def test_a_number_written_in_the_forward_stays_though_an_input_is_as_wide() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(4, 32, 3), nn.ReLU(), Bins(32)).eval(), torch.randn(2, 4, 9)
    result = prune(model, x, ratio=0.4)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    assert result.model[2].sides.weight.shape == (32, 20, 1)  # type: ignore[index]
