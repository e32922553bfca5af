"""Outputs that are masked out: minus infinity in the original and in what becomes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import PruneError
from penjing.graph import couple, trace
from penjing.prune import make_criterion, prune
from penjing.prune.compare import relative_error
from penjing.prune.criteria import Material
from penjing.prune.masked import masked_equivalence
from penjing.prune.reconstruct import reconstruct
from penjing.search.sensitivity import Sensitivity, sensitivity

INF = float("inf")
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    def __init__(self, *, masks: bool, legal: int = 3) -> None:
        super().__init__()
        self.masks, self.legal = masks, legal
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem, self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 16)
            self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        scores: Tensor = self.head(h + self.two(self.one(h).relu()))
        illegal = torch.arange(4) >= self.legal
        return scores.masked_fill(illegal, -INF) if self.masks else scores[:, : self.legal]


def sensed(model: nn.Module) -> Sensitivity:
    graph = trace(model, X[:2])
    coupling = couple(graph)
    scores = make_criterion("magnitude").scores(Material(model, graph, coupling))
    return sensitivity(graph, coupling, scores, [X])


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([2.0, -INF], [4.0, -INF], 0.5),
        ([-INF, INF], [-INF, INF], 0.0),
        ([2.0, INF], [2.0, -INF], INF),
        ([2.0, 1.0], [2.0, -INF], INF),
    ],
)
def test_the_same_infinity_is_no_difference(found: list[float], expected: list[float], error: float) -> None:
    assert relative_error(torch.tensor(found), torch.tensor(expected)) == error


def test_damage_is_that_of_the_scores_that_are_left() -> None:
    masked, cut = sensed(Masked(masks=True)), sensed(Masked(masks=False))
    assert masked.measure == cut.measure == "kl"
    assert masked.damage == pytest.approx(cut.damage)
    assert masked.damage.max() > 0


def test_a_network_with_masked_scores_is_shortened_narrowed_and_refitted() -> None:
    model = Masked(masks=True)
    short = prune(model, X[:2], 0.25, data=[X], branches=1)
    assert len(short.plan.branches) == 1
    narrow = prune(model, X[:2], 0.5)
    assert masked_equivalence(model, narrow, X[:2]) <= 1e-5
    masked, cut = (
        reconstruct(prune(one, X[:2], 0.5).model, one, narrow.plan, [X])
        for one in (model, Masked(masks=False))
    )
    assert masked.error_after < masked.error_before
    assert masked.error_before == pytest.approx(cut.error_before, rel=1e-4)


def test_damage_that_is_not_finite_is_refused() -> None:
    class Odd(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).log()

    with pytest.raises(PruneError, match=r"outputs change by nan"):
        sensed(Odd(masks=False))
