"""Features of a student that is a traced graph are those of the class it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import RecoverError
from penjing.graph import GraphModel, trace
from penjing.prune import prune
from penjing.recover import RecoverConfig, recover
from penjing.recover.features import FeatureSpec, Taps, feature_specs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))  # type: ignore[no-any-return]


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


DATA = [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
LAYERS = ("stem.0", "body.1", "head")


@pytest.mark.parametrize("layers", [(), LAYERS, ("stem", "body")])
def test_graph_and_class_give_the_same_features(layers: tuple[str, ...]) -> None:
    model = net()
    graph = GraphModel(trace(model, DATA[0]))
    before = graph.code
    found = []
    for student in (model, graph):
        specs = feature_specs(student, model, layers)
        with Taps(student, specs) as taps:
            output = student(DATA[1])
        found.append({**taps.features, "output": output})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 1 + (len(layers) or 1)
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6)
    assert graph.code == before


def test_a_shorter_and_narrower_student_is_taught_by_features() -> None:
    model = net()
    made = prune(model, DATA[0], 0.5, "random", branches=["body.0"])
    data = [(x, torch.arange(8) % 4) for x in DATA]
    losses = [{"name": "mse", "options": {"layers": ["head"]}}, {"name": "rkd", "weight": 0.1}]
    config = RecoverConfig.parse({"epochs": 4, "lr": 0.02, "losses": losses})
    done = recover(made.model, model, data, config, plan=made.plan)
    history = [record["loss_mse"] for record in done.history]
    assert history[-1] < history[0]


def test_what_goes_into_a_block_of_a_graph_is_not_known() -> None:
    """What leaves it is: one value of the trace."""
    graph = GraphModel(trace(net(), DATA[0]))
    with pytest.raises(RecoverError, match="0 operations"), Taps(graph, (FeatureSpec("body", "input"),)):
        pass


class Asking(nn.Module):
    """A block that begins with a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.randn(1, 3, 6))
        self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        asked = self.asked.repeat(len(x), 1, 1)
        out: Tensor = torch.softmax(asked @ self.key(x).mT, -1) @ self.value(x)
        return out


def test_what_leaves_a_block_is_not_what_reads_its_own_tensor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Asking(), Asking()).eval()
    x = torch.randn(4, 5, 6)
    graph = GraphModel(trace(model, x))
    for student in (model, graph):
        with Taps(student, (FeatureSpec("0", "output"),)) as taps:
            student(x)
        torch.testing.assert_close(next(iter(taps.features.values())), model[0](x))
