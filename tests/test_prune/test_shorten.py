"""Taking residual branches out: which go first, what is refused, and what the result can do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from penjing.errors import BudgetError, PruneError, QuantizeError
from penjing.export import OnnxRunner, export_onnx
from penjing.graph import trace
from penjing.graph.branches import WithoutBranches, chosen, find_branches
from penjing.prune import Budget, apply_, prune
from penjing.prune.compare import relative_error, run
from penjing.prune.shorten import least_felt
from penjing.quantize.slice import slice_quantized


class Block(nn.Module):
    """A residual block whose activations write in place."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        nn.init.constant_(self.bn2.weight, share)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)  # type: ignore[no-any-return]


SHARES = (0.5, 0.02, 0.3, 0.05)


class Net(nn.Module):
    """Blocks that speak louder or softer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8, share) for share in SHARES))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
        model.train()
        for _ in range(4):
            model(torch.randn(64, 3, 8, 8))
    return model.eval()


DATA = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
X = DATA[0][:4]


def test_the_softest_go_first() -> None:
    result = prune(net(), X, 0.0, branches=2, data=DATA)
    assert sorted(result.plan.branches) == ["blocks.1", "blocks.3"]
    names = {name for name, _ in result.model.named_parameters()}
    assert not any(name.startswith(("blocks.1.", "blocks.3.")) for name in names)
    assert "blocks.1.bn1.num_batches_tracked" in result.plan.gone


@torch.no_grad()
def test_lazy_and_plain_greedy_agree() -> None:
    graph = trace(net(), X)
    branches = find_branches(graph)
    x = torch.cat(DATA)
    whole = graph(x)
    order: list[str] = []
    while len(order) < len(branches):
        left = [branch for branch in branches if branch.name not in order]
        harms = {
            one.name: float((WithoutBranches(graph, [*chosen(branches, order), one]).run(x) - whole).norm())
            for one in left
        }
        order.append(min(harms, key=lambda name: harms[name]))
    assert [branch.name for branch in least_felt(graph, branches, len(branches), DATA)] == order


def test_what_is_to_be_left_alone_does_not_go() -> None:
    alone = ("blocks.1.*", "*.bn2.weight")
    result = prune(net(), X, 0.5, "random", branches=2, data=DATA, ignore=alone)
    assert sorted(result.plan.branches) == ["blocks.2", "blocks.3"]
    names = {name for name, _ in result.model.named_parameters()}
    assert result.model.get_parameter("blocks.1.conv1.weight").shape == (8, 8, 3, 3)
    assert "blocks.3.conv1.weight" not in names
    named = prune(net(), X, 0.0, branches=["blocks.1"], ignore=alone)
    assert list(named.plan.branches) == ["blocks.1"]
    with pytest.raises(PruneError, match="network has 0 that may"):
        prune(net(), X, branches=1, data=DATA, ignore=("blocks.*",))


def test_auto_without_branches_is_plain_pruning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    made = prune(model, X, budget=Budget(params=0.5), branches="auto", data=DATA)
    assert made.in_place
    assert not made.plan.branches


def test_a_refit_makes_up_for_most_of_it() -> None:
    model = net()
    result = prune(model, X, 0.0, branches=2, data=DATA, reconstruct=True)
    assert result.reconstruction.error_after < 0.5 * result.reconstruction.error_before
    assert not result.reconstruction.notes


def test_shares_of_a_budget_are_of_the_original() -> None:
    model = net()
    result = prune(model, X, budget=Budget(macs=0.5), scope="global", branches=1, data=DATA)
    assert 0.4 * result.before["macs"] < result.after["macs"] <= 0.5 * result.before["macs"]
    assert len(result.plan.branches) == 1


def test_auto_takes_the_depth_that_loses_least() -> None:
    """Two of the blocks all but do nothing, so that taking them out leaves more for the others."""
    model = net()
    options: dict[str, Any] = {"criterion": "obs", "scope": "global", "branches": "auto", "data": DATA}
    made = prune(model, X, budget=Budget(macs=0.4), **options)
    assert made.depths is not None
    assert set(made.depths) >= {0, 1, 2}
    assert made.depths[len(made.plan.branches)] == min(made.depths.values()) < made.depths[0]
    assert made.after["macs"] <= 0.4 * made.before["macs"]
    assert made.reconstruction is None
    fitted = prune(model, X, budget=Budget(macs=0.4), reconstruct=True, **options)
    assert fitted.plan == made.plan
    assert fitted.reconstruction.error_after == min(made.depths.values())


def test_a_budget_that_widths_alone_do_not_reach() -> None:
    budget = Budget(macs=0.3)
    options: dict[str, Any] = {"scope": "global", "data": DATA, "min_slots": 6}
    with pytest.raises(BudgetError, match="out of reach"):
        prune(net(), X, budget=budget, **options)
    made = prune(net(), X, budget=budget, branches="auto", **options)
    assert made.plan.branches
    assert made.after["macs"] <= 0.3 * made.before["macs"]
    with pytest.raises(BudgetError, match="out of reach"):
        prune(net(), X, budget=Budget(macs=0.01), branches="auto", **options)


def test_the_original_and_its_values_are_untouched() -> None:
    """The ReLU that wrote into the sum must not write into the shortcut, which has other readers."""

    class Both(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head((self.blocks(x) + 3 * x).mean((2, 3)))  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Both().eval()
    before = copy.deepcopy(model.state_dict())
    result = prune(model, X, 0.0, branches=["blocks.0"])
    blocks = nn.Sequential(nn.ReLU(), *model.blocks[1:])
    stem = model.stem(X)
    expected = model.head((blocks(stem) + 3 * stem).mean((2, 3)))
    assert relative_error(run(result.model, X), expected) <= 1e-6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_optimizer_state_goes_on() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).square().mean().backward()
    optimizer.step()
    result = prune(model, X, 0.5, "random", branches=["blocks.1"])
    names = [name for name, _ in model.named_parameters()]
    state = result.plan.slice_optimizer(optimizer.state_dict(), names)
    small = dict(result.model.named_parameters())
    left = torch.optim.Adam(small.values())
    left.load_state_dict(state)
    for name, param in small.items():
        whole = optimizer.state[dict(model.named_parameters())[name]]["exp_avg"]
        assert torch.equal(left.state[param]["exp_avg"], result.plan.slice_tensor(name, whole))


def test_the_file_has_no_trace_of_a_branch(tmp_path: Path) -> None:
    result = prune(net(), X, 0.0, branches=["blocks.1", "blocks.2"])
    path = export_onnx(result.model, tmp_path / "short.onnx", X)
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count("Conv") == 1 + 2 * 2
    assert ops.count("Relu") == 1 + 2 * 2
    runner = OnnxRunner(path)
    (found,) = runner.run({runner.inputs[0].name: X.numpy()})
    np.testing.assert_allclose(found, run(result.model, X).numpy(), rtol=1e-4, atol=1e-5)


def test_a_cast_between_sum_and_shortcut_does_not_hide_the_branch() -> None:
    """Keras casts both operands of a sum to the type they have."""

    class Cast(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x.to(torch.float32) + self.blocks.get_submodule("0.conv1")(x).to(torch.float32)
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    (branch,) = find_branches(trace(Cast(), X))
    assert branch.name == "blocks.0.conv1"


def test_bad_requests() -> None:
    model = net()
    with pytest.raises(PruneError, match="5 branches are to go and the network has 4 that may"):
        prune(model, X, branches=5, data=DATA)
    with pytest.raises(PruneError, match="-1 branches"):
        prune(model, X, branches=-1, data=DATA)
    with pytest.raises(PruneError, match="needs data"):
        prune(model, X, branches=1)
    with pytest.raises(PruneError, match=r"no residual branch is called 'blocks\.9'") as caught:
        prune(model, X, branches=["blocks.9"])
    assert "blocks.0" in str(caught.value)
    with pytest.raises(PruneError, match="'auto' needs a budget and data"):
        prune(model, X, branches="auto", data=DATA)
    with pytest.raises(PruneError, match="branches 'many'"):
        prune(model, X, branches="many", data=DATA)
    with pytest.raises(PruneError, match="no residual branch"):
        prune(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(2, 3), branches=["0"])
    plan = prune(model, X, 0.0, branches=["blocks.1"]).plan
    with pytest.raises(PruneError, match="cannot follow"):
        apply_(net(), plan, X)
    with pytest.raises(QuantizeError, match="whole branches out"):
        slice_quantized(plan, {}, {"layers": []})


def test_ratios_of_what_goes_with_a_branch_do_not_end_the_search() -> None:
    model, heard = net(), list[str]()
    names = [branch.name for branch in find_branches(trace(model, X))]
    ratios = {f"{name}.*": 0.2 for name in names}
    result = prune(
        model, X, branches=names[:1], ratios=ratios, listen=lambda event: heard.append(event.message)
    )
    assert result.plan.branches.keys() == {names[0]}
    assert f"ratios pattern {names[0] + '.*'!r} matches no group that may go" in heard
    with pytest.raises(PruneError, match=r"ratios pattern 'blokcs\.0' matches no parameter"):
        prune(model, X, branches=names[:1], ratios={"blokcs.0": 0.2})
