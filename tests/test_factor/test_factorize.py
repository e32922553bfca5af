"""Networks with layers of a low rank: within their budget, in their class, and all that comes after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.errors import DataError, FactorizeError, PruneError
from penjing.factor import FactorizeResult, Pair, factorize, with_ranks
from penjing.graph import couple, trace
from penjing.measure import count
from penjing.prune.masked import masked_equivalence


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class _Net(nn.Module):
    """Residual blocks, a depthwise layer, one that is never called, a head whose weight is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.Sequential(_Block(12), _Block(12))
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.unused = nn.Linear(4, 4)
        self.hidden = nn.Linear(12, 40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.blocks(F.relu(self.stem(x)))).mean((2, 3))
        out: Tensor = self.head(F.relu(self.hidden(x.to(self.head.weight.dtype))))
        return out


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = _Net()
    with torch.no_grad():  # statistics as of a network that has seen something
        for _ in range(20):
            model(_images(0))
    return model.eval()


def _images(seed: int, samples: int = 32) -> Tensor:
    """Smooth ones: neighbours are alike."""
    noise = torch.randn(samples, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(10, 10), mode="bilinear")


@pytest.fixture(scope="module")
def data() -> list[Tensor]:
    return [_images(seed) for seed in range(1, 4)]


@pytest.fixture(scope="module")
def done(net: nn.Module, data: list[Tensor]) -> FactorizeResult:
    return factorize(net, data[0], {"macs": 0.5}, data, reconstruct={"block_steps": 12})


def _error(model: nn.Module, net: nn.Module) -> float:
    """On images that nobody has seen."""
    with torch.no_grad():
        mine, theirs = model(_images(99, 128)), net(_images(99, 128))
    return float((mine - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("bound", ["macs", "params"])
def test_budgets_hold_to_one_rank(net: nn.Module, data: list[Tensor], bound: str, share: float) -> None:
    found = factorize(net, data[0], {bound: share}, data, reconstruct=False)
    before, after = (getattr(counted, f"num_{bound}") for counted in (found.before, found.after))
    assert found.after == count(found.model, data[0])
    assert share * before >= after > share * before - 0.05 * before
    if share == 1.0:
        assert not found.layers
        torch.testing.assert_close(found.model(data[0]), net(data[0]))


def test_the_class_and_the_original_stay(net: nn.Module, data: list[Tensor]) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    found = factorize(net, data[0], {"macs": 0.5}, data, reconstruct={"block_steps": 2})
    assert type(found.model) is type(net)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in found.model.modules())
    assert {name for name, _ in found.model.named_modules() if name in found.ranks} == set(found.ranks)
    assert found.whole["depthwise"] == "it is grouped"
    assert "does not call" in found.whole["unused"]
    pairs = {name: pair.rank for name, pair in found.model.named_modules() if isinstance(pair, Pair)}
    assert pairs == found.ranks


def test_the_same_seed_gives_the_same(net: nn.Module, data: list[Tensor], done: FactorizeResult) -> None:
    again = factorize(net, data[0], {"macs": 0.5}, data, reconstruct={"block_steps": 12})
    assert again.ranks == done.ranks
    assert all(
        torch.equal(a, b) for a, b in zip(again.model.parameters(), done.model.parameters(), strict=True)
    )


def test_the_refit_and_the_data_bring_it_closer(
    net: nn.Module, data: list[Tensor], done: FactorizeResult
) -> None:
    bare = factorize(net, data[0], {"macs": 0.5}, data, reconstruct=False)
    by_weights = with_ranks(net, bare.ranks)
    errors = [_error(model, net) for model in (done.model, bare.model, by_weights)]
    assert errors == sorted(errors)
    assert errors[0] < 0.5 * errors[1]
    assert done.fit is not None
    assert done.fit.error_after < done.fit.error_before
    assert done.fit.blocks
    told = json.loads(json.dumps(done.to_dict()))
    assert {one["name"]: one["rank"] for one in told["layers"]} == done.ranks


def test_weights_are_read_into_the_ranks(net: nn.Module, done: FactorizeResult) -> None:
    empty = with_ranks(net, done.ranks)
    empty.load_state_dict(done.model.state_dict())
    torch.testing.assert_close(empty(_images(5)), done.model(_images(5)))


def test_what_comes_after(net: nn.Module, data: list[Tensor], done: FactorizeResult, tmp_path: Path) -> None:
    """Pruned, its ranks being axes; recovered with blocks held to the original's; in int8 and in files."""
    pruned = pj.prune(done.model, data[0], ratio=0.25)
    assert type(pruned.model) is type(net)
    assert masked_equivalence(done.model, pruned, data[0]) < 1e-5
    assert any("blocks.0.conv1.into" in group.id for group in couple(trace(done.model, data[0])).groups)
    labels = torch.zeros(32, dtype=torch.int64)
    batches = [(x, labels) for x in data]
    config: dict[str, Any] = {"epochs": 3, "lr": 1e-3, "losses": {"kd": 1.0, "mse": {"layers": "blocks"}}}
    recovered = pj.recover(done.model, net, batches, config)
    assert _error(recovered.model, net) < _error(done.model, net) * 1.5
    found = pj.quantize(done.model, data, out=tmp_path / "model.int8.onnx", example_inputs=data[0])
    assert found.path.exists()
    pj.export(done.model, tmp_path / "files", formats=("onnx",), example_inputs=data[0])
    pj.save_artifact(tmp_path / "artifact", done.model, example_inputs=data[0])
    loaded: Any = pj.load(tmp_path / "artifact")
    torch.testing.assert_close(loaded(data[1]), done.model(data[1]), rtol=1e-4, atol=1e-4)


def test_a_pruned_network_loses_ranks_as_well(net: nn.Module, data: list[Tensor]) -> None:
    pruned = pj.prune(net, data[0], ratio=0.25)
    found = factorize(pruned.model, data[0], {"macs": 0.7}, data, reconstruct={"block_steps": 4})
    config = {"epochs": 1, "lr": 1e-4, "losses": {"kd": 1.0, "mse": {"layers": "blocks"}}}
    batches = [(x, torch.zeros(32, dtype=torch.int64)) for x in data]
    recovered = pj.recover(found.model, net, batches, config, plan=pruned.plan)
    assert type(recovered.model) is type(net)


def test_it_can_be_fitted_again(net: nn.Module, data: list[Tensor]) -> None:
    bare = factorize(net, data[0], {"macs": 0.5}, data, reconstruct=False)
    once = pj.reconstruct(bare.model, net, {}, data)
    twice = pj.reconstruct(once.model, bare.model, {}, data)  # both have the pairs: names as they are
    assert once.error_after < once.error_before
    assert twice.error_after < 1.0


def test_shared_weights_stay_whole(data: list[Tensor]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)
            self.b.weight = self.a.weight
            self.again = self.c  # one module in two places

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x) + self.b(x)
            out: Tensor = self.again(F.relu(self.c(F.relu(x))))
            return out

    torch.manual_seed(1)
    found = factorize(Tied(), data[0], {"macs": 0.9}, [torch.randn(64, 10)], reconstruct=False)
    assert "shared" in found.whole["a"]
    assert "shared" in found.whole["b"]
    model: Any = found.model
    assert isinstance(model.c, Pair)
    assert model.again is model.c


@pytest.mark.parametrize("budget", [{"latency": "0.5x"}, {"macs": 0.5, "params": 0.5}, {"bytes": 0.5}])
def test_budgets_of_something_else(net: nn.Module, data: list[Tensor], budget: dict[str, Any]) -> None:
    with pytest.raises(FactorizeError, match="one of macs and params"):
        factorize(net, data[0], budget, data)


def test_what_cannot_be(net: nn.Module, data: list[Tensor]) -> None:
    with pytest.raises(FactorizeError, match="out of reach"):
        factorize(net, data[0], {"macs": 0.01}, data)
    with pytest.raises(FactorizeError, match="no layer can be split"):
        factorize(nn.Conv2d(3, 3, 3, groups=3), data[0], {"macs": 0.5}, data)
    with pytest.raises(PruneError, match="blocs"):
        factorize(net, data[0], {"macs": 0.5}, data, ignore="blocs.*")
    with pytest.raises(DataError, match="NaN"):
        factorize(net, data[0], {"macs": 0.5}, [torch.full((8, 3, 10, 10), torch.nan)])
    with pytest.raises(DataError):
        factorize(net, data[0], {"macs": 0.5}, [])
    for ranks in ({"stem.x": 2}, {"depthwise": 2}, {"stem": 0}, {"stem": 99}):
        with pytest.raises(FactorizeError):
            with_ranks(net, ranks)
    kept = factorize(net, data[0], {"macs": 0.6}, data, ignore="blocks.0.*", reconstruct=False)
    assert not any(name.startswith("blocks.0") for name in kept.ranks)
    assert kept.whole["blocks.0.conv1"] == "it is to be left alone"
