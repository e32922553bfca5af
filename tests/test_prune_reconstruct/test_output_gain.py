from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.graph import couple, trace
from penjing.prune.criteria import Material, make_criterion
from penjing.prune.output_gain import output_gains
from penjing.prune.places import find_places

GENERATOR = torch.Generator().manual_seed(0)


def rows(count: int = 64, size: int = 6) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1))


def gains_of(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], float]:
    graph = trace(model, x[:2])
    nodes = {call.node: name for name, place in find_places(graph).items() for call in place.calls}
    return output_gains(graph, nodes, [[x[:40]], [x[40:]]], torch.Generator().manual_seed(2))


def test_where_each_output_reads_one_channel_the_gain_is_its_weight_squared() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4, bias=False)).eval()
    scale = torch.tensor([3.0, -0.5, 0.0, 2.0])
    with torch.no_grad():
        model[1].weight.copy_(torch.diag(scale)[[2, 0, 3, 1]])  # type: ignore[operator]
    gains, variance = gains_of(model, rows())
    assert torch.allclose(gains["0.weight"], scale.double().square(), rtol=1e-5)
    assert torch.allclose(gains["1.weight"], torch.ones(4, dtype=torch.float64))
    with torch.no_grad():
        assert variance == pytest.approx(float(model(rows()).var(0, correction=0).sum()), rel=1e-5)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu_(self.conv(x)).mean((2, 3)))
        return out


def test_gains_predict_what_small_errors_do_to_the_output() -> None:
    model, x = Conv().eval(), torch.randn(400, 2, 6, 6, generator=GENERATOR)
    gains, _ = gains_of(model, x)
    noise = 1e-3 * torch.randn(400, 5, 6, 6, generator=GENERATOR)
    for channel in range(5):
        disturbed = torch.zeros_like(noise)
        disturbed[:, channel] = noise[:, channel]
        with torch.no_grad():
            hidden = model.conv(x)
            rise = (
                model.head(F.relu(hidden + disturbed).mean((2, 3))) - model.head(F.relu(hidden).mean((2, 3)))
            ).double()
        predicted = float(gains["conv.weight"][channel]) * 1e-6
        assert float(rise.square().sum(1).mean()) == pytest.approx(predicted, rel=0.3)


def test_slots_whose_reader_hardly_reaches_the_output_go_first() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
            self.a2, self.b2 = nn.Linear(8, 5), nn.Linear(8, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.a2(F.relu(self.a(x))) + 0.01 * self.b2(F.relu(self.b(x))))
            return out

    model = Fork().eval()
    graph = trace(model, rows()[:2])
    coupling = couple(graph)
    scores = {
        weighting: make_criterion({"name": "obs", "weighting": weighting}).scores(
            Material(model, graph, coupling, [rows()])
        )
        for weighting in ("output", "layer")
    }
    strong, weak = "a.weight:0", "b.weight:0"
    assert scores["output"][strong].mean() > 1000 * scores["output"][weak].mean()
    assert scores["layer"][strong].mean() < 10 * scores["layer"][weak].mean()
    # within a group the output decides by channel, and every score is at its turn: never negative
    assert all((row >= 0).all() for row in scores["output"].values())
