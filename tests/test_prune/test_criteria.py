"""Every criterion against its formula, and what all of them promise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError, PruneError
from penjing.graph import couple, trace
from penjing.prune import Material, all_criteria, make_criterion, prune
from penjing.prune.criteria.base import Normalisation, Scores, normalise, reduce_members


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


@cache
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
        nn.init.normal_(model.norm.weight)
        return model.eval()


@cache
def material() -> Material:
    model = net()
    graph = trace(model, torch.randn(2, 3, 5, 5))
    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(4, 3, 5, 5, generator=generator), torch.randint(0, 4, (4,), generator=generator))
        for _ in range(3)
    ]
    return Material(model, graph, couple(graph), data)


def only(name: str, **options: object) -> Scores:
    scores = make_criterion({"name": name, "normalisation": "none", **options}).scores(material())
    assert list(scores) == ["conv.weight:0"]
    return scores["conv.weight:0"]


@pytest.mark.parametrize("name", all_criteria())
def test_scores_are_finite_deterministic_and_leave_the_model(name: str) -> None:
    state = {k: v.clone() for k, v in net().state_dict().items()}
    flags = [m.training for m in net().modules()]
    first, second = (make_criterion(name).scores(material()) for _ in range(2))
    assert first.keys() == {"conv.weight:0"}
    for group, scores in first.items():
        assert scores.shape == (6,)
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()
        assert np.array_equal(scores, second[group])
    assert all(torch.equal(v, state[k]) for k, v in net().state_dict().items())
    assert [m.training for m in net().modules()] == flags
    assert all(p.grad is None for p in net().parameters())


@pytest.mark.parametrize("name", ["obs", "activation"])
def test_batches_may_come_as_one_tensor(name: str) -> None:
    stacked = torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = material()
    found = [
        make_criterion(name).scores(Material(given.model, given.graph, given.coupling, data, None, 0))
        for data in (stacked, list(stacked))
    ]
    for group in given.coupling.groups:
        np.testing.assert_array_equal(found[0][group.id], found[1][group.id])


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_magnitude_is_the_norm(p: float) -> None:
    conv, head = net().conv.weight.detach().double(), net().head.weight.detach().double()
    rows = torch.stack([conv.flatten(1).norm(p, dim=1), head.norm(p, dim=0)])
    np.testing.assert_allclose(only("magnitude", p=p), rows.mean(0).numpy(), rtol=1e-6)
    np.testing.assert_allclose(only("magnitude", p=p, reduction="max"), rows.amax(0).numpy(), rtol=1e-6)
    np.testing.assert_allclose(only("magnitude", p=p, reduction="first"), rows[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(only("magnitude", p=p, reduction="sum"), rows.sum(0).numpy(), rtol=1e-6)


def test_bn_scale_is_the_absolute_scale() -> None:
    np.testing.assert_allclose(only("bn_scale"), net().norm.weight.detach().abs().numpy(), rtol=1e-6)


def test_fpgm_is_the_sum_of_distances() -> None:
    rows = net().conv.weight.detach().double().flatten(1)
    np.testing.assert_allclose(only("fpgm"), torch.cdist(rows, rows).sum(1).numpy(), rtol=1e-5)


def test_fpgm_of_twins_is_lowest_when_others_differ() -> None:
    """Two equal filters at the centre can stand for each other."""
    first = nn.Linear(2, 5, bias=False)
    model = nn.Sequential(first, nn.Linear(5, 2))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[5.0, 0], [0, 0], [0, 0], [0, 5], [-5, -5]]))
    graph = trace(model, torch.randn(2, 2))
    scores = make_criterion("fpgm").scores(Material(model, graph, couple(graph)))["0.weight:0"]
    assert set(np.argsort(scores)[:2]) == {1, 2}


def gradients() -> list[dict[str, Tensor]]:
    out = []
    for x, y in material().data or ():
        model = net()
        params = dict(model.named_parameters())
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(params.values()))
        out.append(dict(zip(params, grads, strict=True)))
    return out


def test_taylor_is_the_squared_sum_of_gradient_times_weight() -> None:
    rows = []
    for name, p in net().named_parameters():
        if name == "head.bias":
            continue
        dim = 1 if name == "head.weight" else 0
        products = [
            (g[name] * p).detach().double().movedim(dim, 0).reshape(6, -1).sum(1) for g in gradients()
        ]
        rows.append(torch.stack(products).square().mean(0))
    np.testing.assert_allclose(only("taylor"), torch.stack(rows).mean(0).numpy(), rtol=1e-3)


def test_fisher_is_half_the_curvature_times_weight_squared() -> None:
    rows = []
    for name, p in net().named_parameters():
        if name == "head.bias":
            continue
        dim = 1 if name == "head.weight" else 0
        curvature = torch.stack([g[name].square() for g in gradients()]).mean(0)
        rows.append((0.5 * curvature * p.square()).detach().double().movedim(dim, 0).reshape(6, -1).sum(1))
    np.testing.assert_allclose(only("fisher"), torch.stack(rows).mean(0).numpy(), rtol=1e-3)


def test_activation_is_the_mean_size_where_a_weight_reads() -> None:
    model = net()
    with torch.no_grad():
        means = [
            F.relu(model.norm(model.conv(x))).mean((2, 3)).abs().mean(0) for x, _ in material().data or ()
        ]
    np.testing.assert_allclose(only("activation"), torch.stack(means).mean(0).numpy(), rtol=1e-4)


def test_random_follows_the_seed() -> None:
    graph, coupling = material().graph, material().coupling
    draws = [make_criterion("random").scores(Material(net(), graph, coupling, seed=s)) for s in (0, 0, 1)]
    first, again, other = (d["conv.weight:0"] for d in draws)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("how", ["none", "mean", "max", "gauss", "lamp"])
def test_normalisations_keep_the_order(how: Normalisation) -> None:
    scores = np.random.default_rng(0).random(20)
    assert np.array_equal(np.argsort(normalise(scores, how)), np.argsort(scores))
    assert np.isfinite(normalise(np.zeros(3), how)).all()


def test_normalisations() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(normalise(scores, "mean"), scores / 2)
    np.testing.assert_allclose(normalise(scores, "max"), scores / 3)
    np.testing.assert_allclose(normalise(scores, "lamp"), [1 / 6, 2 / 5, 1])
    gauss = normalise(scores, "gauss")
    assert abs(gauss.mean()) < 1e-12
    assert abs(gauss.std() - 1) < 1e-12
    np.testing.assert_array_equal(reduce_members([], "mean", 3), np.ones(3))


def test_errors() -> None:
    with pytest.raises(PruneError, match="unknown criterion"):
        make_criterion("size")
    with pytest.raises(PruneError, match="magnitude"):
        make_criterion({"name": "magnitude", "q": 1})
    bare = Material(net(), material().graph, material().coupling)
    with pytest.raises(PruneError, match="needs data"):
        make_criterion("taylor").scores(bare)
    empty = Material(net(), material().graph, material().coupling, data=[])
    for name in ("taylor", "fisher", "activation"):
        with pytest.raises(DataError, match="no batches"):
            make_criterion(name).scores(empty)
    bad = [(torch.full((2, 3, 5, 5), float("nan")), torch.zeros(2, dtype=torch.int64))]
    for name in ("taylor", "activation"):
        with pytest.raises(PruneError, match=r"nan|not finite"):
            make_criterion(name).scores(Material(net(), material().graph, material().coupling, data=bad))


def test_own_loss_and_no_labels() -> None:
    inputs = [x for x, _ in material().data or ()]
    x = inputs[0]
    result = prune(
        net(), x, criterion="taylor", data=inputs, loss=lambda output, batch: output.square().mean()
    )
    assert len(result.plan.groups["conv.weight:0"].kept) == 3
    assert len(prune(net(), x, criterion="fisher", data=inputs).plan.groups["conv.weight:0"].kept) == 3
