"""An input that belongs to all samples, such as the adjacency of a graph, is no batch: a network that is
given one does what the same network does that holds it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.batches import Batch, between, share, tensors
from penjing.export.base import Source
from penjing.export.litert import calibration
from penjing.graph import couple, trace
from penjing.measure import onnx_candidate
from penjing.prune import prune
from penjing.prune.reconstruct import ReconstructConfig, reconstruct
from penjing.prune.sparsity import sparsify
from penjing.quantize import QuantizeConfig, quantize
from penjing.recipe.feed import Take
from penjing.recover import RecoverConfig, recover
from penjing.search.sensitivity import sensitivity

NODES, SIZES = 7, (10, 16, 10)
"""Batches are larger than the graph: what cuts its rows away is seen."""


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Linear(5, 24), nn.Linear(24, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(adjacency @ self.one(x))
        x = F.relu(adjacency @ self.two(x))
        x = x + F.relu(adjacency @ self.three(x))
        out: Tensor = self.head(x.mean(1))
        return out


class Held(nn.Module):
    def __init__(self, net: Graph, adjacency: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x, self.adjacency)
        return out


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ADJACENCY = torch.softmax(2 * drawn(NODES, NODES, seed=9), 1)
X = [drawn(size, NODES, 5, seed=at) for at, size in enumerate(SIZES)]
Y = [torch.arange(size) % 4 for size in SIZES]


def given() -> tuple[nn.Module, Any, list[Any]]:
    return Graph().eval(), (X[0], ADJACENCY), [((x, ADJACENCY), y) for x, y in zip(X, Y, strict=True)]


def held() -> tuple[nn.Module, Any, list[Any]]:
    return Held(Graph(), ADJACENCY).eval(), X[0], list(zip(X, Y, strict=True))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("net."): value.detach().clone() for name, value in model.named_parameters()}


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("criterion", ["obs", "taylor"])
@pytest.mark.parametrize("block_steps", [0, 6])
def test_pruned_and_refitted(criterion: str, block_steps: int) -> None:
    made = []
    for model, example, data in (given(), held()):
        options = {"max_samples": 30, "block_steps": block_steps}
        made.append(prune(model, example, 0.5, criterion, data=data, reconstruct=options).model)
    assert_alike(*made)


def test_memory_limits_the_samples_alone() -> None:
    made = []
    for model, example, data in (given(), held()):
        small = prune(model, example, 0.5)
        report = reconstruct(small.model, model, small.plan, data, ReconstructConfig(max_memory=2e-5))
        made.append(small.model)
        assert any(" of 36 samples were used" in note for note in report.notes)
    assert_alike(*made)


def test_sensitivity_joins_batches() -> None:
    found = []
    for model, example, data in (given(), held()):
        graph = trace(model, example)
        coupling = couple(graph)
        scores = {group.id: np.arange(float(group.size)) for group in coupling.groups}
        found.append(sensitivity(graph, coupling, scores, data, samples=23))
    assert found[0].samples == found[1].samples == 23
    np.testing.assert_allclose(found[0].damage, found[1].damage, rtol=1e-3, atol=1e-9)


def test_made_sparse() -> None:
    made = [sparsify(model, 0.5, method="wanda", data=data) for model, _, data in (given(), held())]
    assert_alike(*(one.model for one in made))


@pytest.mark.parametrize("options", [{}, {"regularize": ["group_lasso"]}])
def test_recovered(options: dict[str, Any]) -> None:
    made = []
    for model, _, data in (given(), held()):
        student = copy.deepcopy(model)
        with torch.no_grad():
            for value in student.parameters():
                value.mul_(0.7)
        config = RecoverConfig.parse({"epochs": 1, "lr": 0.01, **options})
        made.append(recover(student, model, data, config, val=data).model)
    assert_alike(*made)


@pytest.mark.parametrize("rounding", ["second_order", "blocks"])
def test_quantized(rounding: str, tmp_path: Path) -> None:
    answers = []
    for model, _, data in (given(), held()):
        path = tmp_path / f"{type(model).__name__}.onnx"
        config = QuantizeConfig.parse({"rounding": rounding, "samples": 30, "check_samples": 4})
        found = quantize(model, data, config, out=path, time_it=False)
        assert found.samples == 26
        session = onnxruntime.InferenceSession(str(path))
        feeds = {"x": X[1].numpy(), "adjacency": ADJACENCY.numpy()}
        named = [entry.name for entry in session.get_inputs()]
        answers.append(session.run(None, feeds if len(named) > 1 else {named[0]: X[1].numpy()})[0])
    assert np.abs(answers[0] - answers[1]).max() < 0.05 * np.abs(answers[1]).max()


def test_timed_at_another_batch(tmp_path: Path) -> None:
    from penjing.export import export_onnx

    path = export_onnx(given()[0], tmp_path / "graph.onnx", (X[0], ADJACENCY))
    onnx_candidate(path, batch=3).run()


def test_parts_of_batches_keep_it_whole() -> None:
    part = share(Batch((X[0], ADJACENCY), Y[0]), 1, 2)
    assert part is not None
    assert [tuple(x.shape) for x in tensors(part.inputs)] == [(5, NODES, 5), (NODES, NODES)]
    few = between({"x": X[0], "adjacency": ADJACENCY, "step": torch.tensor(3)}, 0, 2)
    assert few["x"].shape[0] == 2
    assert few["adjacency"] is ADJACENCY
    taken = list(Take(given()[2], 13))
    assert [len(x) for (x, _), _ in taken] == [10, 3]
    assert all(len(adjacency) == NODES for (_, adjacency), _ in taken)


def test_int8_litert_is_calibrated_with_it(tmp_path: Path) -> None:
    feeds = {"x": X[0].numpy(), "adjacency": ADJACENCY.numpy()}
    samples = calibration(Source(tmp_path, feeds, data=given()[2]))
    assert len(samples) == sum(SIZES)
    assert all(len(one["x"]) == 1 and len(one["adjacency"]) == NODES for one in samples)
