"""Forwards that go by how much they find, as detectors do."""

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.events import Event
from penjing.graph import trace
from penjing.measure import inspect
from penjing.prune import apply, masked_equivalence, prune


class Finds(nn.Module):
    """Describes the places whose score is above 0, the best of them where they are many."""

    def __init__(self, *, other: bool = False, rooted: bool = False) -> None:
        super().__init__()
        self.stem, self.score = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 1, 1)
        self.head, self.last = nn.Linear(16, 24), nn.Linear(24, 4)
        self.other = nn.Linear(24, 24) if other else None
        self.rooted = rooted

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.described(image) for image in images]

    def described(self, image: Tensor) -> Tensor:
        seen = self.stem(image[None]).relu()
        scores = self.score(seen).flatten()
        (places,) = torch.where(scores > 0)
        if places.numel() > 50:
            places = places[scores[places].topk(50).indices]
        y = self.head(seen.flatten(2)[0].T[places]).relu()
        if self.other is not None and places.numel() > 50:
            y = self.other(y)
        out: Tensor = self.last(y / 16 ** (len(self.last.weight[0]) - 24) if self.rooted else y)
        return out


def _images() -> tuple[list[Tensor]]:
    torch.manual_seed(0)
    return ([torch.randn(3, 8, 8)],)


def test_a_forward_that_goes_by_what_it_finds_is_pruned_in_its_class() -> None:
    images = _images()
    model = Finds().eval()
    heard: list[Event] = []
    result = prune(model, images, 0.4, listen=heard.append)
    assert result.in_place
    assert any("goes by what it finds" in event.message for event in heard)
    assert isinstance(result.model, Finds)
    assert result.model.last.in_features < 24
    assert masked_equivalence(model, result, images) <= 1e-5
    again = apply(model, result.plan, images).model
    others = [torch.randn(3, 5, 9), torch.randn(3, 30, 30)]  # none is like the example; one has many
    assert max(len(found) for found in model(others)) == 50
    for one, two in zip(result.model(others), again(others), strict=True):
        torch.testing.assert_close(one, two)
    assert inspect(model, images).to_dict()["groups"]


def test_its_graph_serves_nowhere() -> None:
    with pytest.raises(TraceError, match="data-dependent"):
        trace(Finds().eval(), _images())
    with pytest.raises(TraceError, match="its class does not serve, and a graph cannot"):
        prune(Finds(rooted=True).eval(), _images(), 0.4)


def test_weights_that_only_another_find_would_read_are_refused() -> None:
    with pytest.raises(TraceError, match="data-dependent"):
        prune(Finds(other=True).eval(), _images(), 0.4)
