"""What pruning promises, on every structure: masked equivalence, plans, training, shapes, optimizer states."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from small_networks import NETWORKS, build
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.prune import Plan, PruneResult, apply, masked_equivalence, prune
from penjing.prune.compare import run

pytestmark = pytest.mark.parametrize("name", NETWORKS)


def tensors(value: object) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def pruned(
    name: str, ratio: float = 0.5, criterion: str = "random", seed: int = 0
) -> tuple[nn.Module, tuple[Tensor, ...], PruneResult]:
    model, inputs = build(name)
    return model, inputs, prune(model, inputs, ratio=ratio, criterion=criterion, seed=seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_masked_equivalence(name: str, seed: int) -> None:
    model, inputs, result = pruned(name, seed=seed)
    assert result.plan.tensors
    assert result.after["params"] < result.before["params"]
    assert result.after["params"] == sum(p.numel() for p in result.model.parameters())
    assert result.before["params"] == sum(p.numel() for p in model.parameters())
    assert masked_equivalence(model, result, inputs) <= 1e-4


def test_original_is_untouched_and_shapes_are_kept(name: str) -> None:
    model, inputs = build(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = run(model, inputs)
    result = prune(model, inputs, ratio=0.5)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [t.shape for t in tensors(run(result.model, inputs))] == [t.shape for t in tensors(before)]
    assert set(result.model.state_dict()) == set(state)
    assert {
        k: tuple(v.shape) for k, v in result.model.state_dict().items()
    }.items() <= result.plan.new_shapes.items()


def test_forward_and_backward(name: str) -> None:
    _, inputs, result = pruned(name)
    result.model.train()
    loss = torch.stack([t.square().mean() for t in tensors(result.model(*inputs))]).sum()
    loss.backward()
    missing = [n for n, p in result.model.named_parameters() if p.grad is None]
    assert missing == (["unused"] if name == "reused" else [])


def test_ratio_zero_is_the_same_model(name: str) -> None:
    model, inputs, result = pruned(name, ratio=0.0)
    assert not result.plan.tensors
    for ours, theirs in zip(tensors(run(result.model, inputs)), tensors(run(model, inputs)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_plan_reproduces_the_model_bit_for_bit(name: str) -> None:
    model, inputs, result = pruned(name)
    plan = Plan.from_dict(json.loads(json.dumps(result.plan.to_dict())))
    assert plan == result.plan
    again = apply(copy.deepcopy(model), plan, inputs)
    assert again.in_place == result.in_place
    ours, theirs = again.model.state_dict(), result.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors(run(again.model, inputs)), tensors(run(result.model, inputs)), strict=True)
    )
    sliced = plan.slice_state(model.state_dict())
    assert all(torch.equal(sliced[k], theirs[k]) for k in theirs)


def test_plans_compose(name: str) -> None:
    model, inputs, first = pruned(name, ratio=0.34)
    second = prune(first.model, inputs, ratio=0.34, criterion="random", seed=5)
    both = first.plan.then(second.plan)
    once = apply(model, both, inputs)
    ours, theirs = once.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    for a, b in zip(tensors(run(once.model, inputs)), tensors(run(second.model, inputs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert masked_equivalence(model, both, inputs) <= 1e-4


@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_optimizer_state_follows(name: str, make: str) -> None:
    """Slicing the state after steps on the original = what a pruned optimizer would hold, step for step."""
    model, inputs, result = pruned(name)

    def optimizer(m: nn.Module) -> torch.optim.Optimizer:
        if make == "sgd":
            return torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.Adam(m.parameters(), lr=0.1)

    dense = optimizer(model)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    dense.step()
    names = [n for n, _ in model.named_parameters()]
    small = apply(model, result.plan, inputs).model
    fresh = optimizer(small)
    fresh.load_state_dict(result.plan.slice_optimizer(dense.state_dict(), names))
    params = dict(small.named_parameters())
    assert [n for n, _ in small.named_parameters()] == names
    for n, p in model.named_parameters():
        p.grad = torch.randn_like(p)
        params[n].grad = result.plan.slice_tensor(n, p.grad)
    dense.step()
    fresh.step()
    state = result.plan.slice_state(dict(model.named_parameters()))
    for n, p in params.items():
        torch.testing.assert_close(p, state[n].to(p.dtype))
