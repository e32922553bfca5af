"""What pruning promises, on every structure: equivalence, plans, training, shapes, optimizer states."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from small_networks import NETWORKS, build
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.graph import Coupling, Graph, couple, trace
from penjing.prune import Plan, PruneResult, allocate, apply, make_criterion, prune, prune_slots
from penjing.prune.block_fit import Blocks, Counterpart
from penjing.prune.compare import relative_error, run
from penjing.prune.criteria import Material
from penjing.prune.masked import masked_output
from penjing.prune.places import find_places
from penjing.prune.reconstruct import counterparts
from penjing.prune.slots import group_edits, slots_of
from penjing.prune.walk import Walk

pytestmark = pytest.mark.parametrize("name", NETWORKS)


def tensors(value: object) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


@dataclass(frozen=True)
class Traced:
    """A network pruned once, for all properties that do not change it."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    graph: Graph
    coupling: Coupling
    result: PruneResult

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.inputs, self.result))


@cache
def pruned(name: str) -> Traced:
    model, inputs = build(name)
    graph = trace(model, inputs)
    coupling = couple(graph)
    scores = make_criterion("random").scores(Material(model, graph, coupling))
    kept = allocate(coupling.groups, scores, ratios={"*:*": 0.5})  # ids: every factor of a product
    return Traced(model, inputs, graph, coupling, prune_slots(model, inputs, graph, coupling, kept))


def test_masked_equivalence(name: str) -> None:
    case = pruned(name)
    model, inputs, result = case
    assert result.plan.tensors
    assert result.after["params"] < result.before["params"]
    assert result.after["params"] == sum(p.numel() for p in result.model.parameters())
    assert result.before["params"] == sum(p.numel() for p in model.parameters())
    expected, leak = masked_output(case.graph, case.coupling, slots_of(result.plan, case.coupling), inputs)
    assert leak <= 1e-4
    assert relative_error(run(result.model, inputs), expected) <= 1e-4


def test_original_is_untouched_and_shapes_are_kept(name: str) -> None:
    fresh, inputs = build(name)
    model, _, result = pruned(name)
    state = fresh.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    before = [t.shape for t in tensors(run(model, inputs))]
    assert [t.shape for t in tensors(run(result.model, inputs))] == before
    shapes = {k: tuple(v.shape) for k, v in result.model.state_dict().items()}
    assert shapes == result.plan.new_shapes


def test_forward_and_backward(name: str) -> None:
    _, inputs, result = pruned(name)
    model = copy.deepcopy(result.model).train()
    loss = torch.stack([t.square().mean() for t in tensors(model(*inputs))]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == (["unused"] if name == "reused" else [])


def test_nothing_removed_is_the_same_model(name: str) -> None:
    case = pruned(name)
    same = prune_slots(case.model, case.inputs, case.graph, case.coupling, {})
    assert same.in_place
    assert not same.plan.tensors
    assert not same.plan.attributes
    for ours, theirs in zip(
        tensors(run(same.model, case.inputs)), tensors(run(case.model, case.inputs)), strict=True
    ):
        assert torch.equal(ours, theirs)


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
    model, inputs, first = pruned(name)
    second = prune(first.model, inputs, ratio=0.34, criterion="random", seed=5)
    case = pruned(name)
    both = first.plan.then(second.plan, case.coupling)
    once = apply(model, both, inputs)
    ours, theirs = once.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    for a, b in zip(tensors(run(once.model, inputs)), tensors(run(second.model, inputs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    slots = slots_of(both, case.coupling)
    expected, _ = masked_output(case.graph, case.coupling, slots, inputs)
    assert relative_error(run(once.model, inputs), expected) <= 1e-4
    by_id = {g.id: slots[g.leaf] for g in case.coupling.groups if g.leaf in slots}
    assert both.groups == group_edits(case.coupling, by_id)
    if name != "shuffle":  # whose order is written anew, so that other groups go in the second plan
        assert first.plan.then(second.plan).groups == both.groups


@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_optimizer_state_follows(name: str, make: str) -> None:
    """Slicing the state after steps on the original = what a pruned optimizer would hold, step for step."""
    original, _, result = pruned(name)
    model, small = copy.deepcopy(original), copy.deepcopy(result.model)

    def optimizer(m: nn.Module) -> torch.optim.Optimizer:
        if make == "sgd":
            return torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.Adam(m.parameters(), lr=0.1)

    dense = optimizer(model)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    dense.step()
    names = [n for n, _ in model.named_parameters()]
    with torch.no_grad():
        for n, p in small.named_parameters():
            p.copy_(result.plan.slice_tensor(n, model.get_parameter(n)))
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


def test_blocks_one_after_the_other_are_the_network(name: str) -> None:
    """Every layer is in one block; what leaves each block is the pruned network's own value."""
    model, inputs, result = pruned(name)
    student, teacher = trace(result.model.eval(), inputs), trace(model.eval(), inputs)
    places = {place.calls[0].node: place for place in find_places(student).values()}
    counterpart = Counterpart(teacher, counterparts(student, teacher), result.plan)
    blocks = Blocks(student, places, counterpart, steps=1, seed=0)
    assert [layer for section in blocks.sections for layer in section.layers] == [p.name for p in places]
    walk = Walk(student, [list(inputs)], pinned=list(student.module.graph.nodes))
    given = walk.inputs[0]
    for section in blocks.sections:
        with torch.no_grad():
            found = blocks.run(section, given)
        for node in blocks.ends(section):
            torch.testing.assert_close(found[node], walk.ensure(node)[0], rtol=1e-6, atol=1e-6)
        given = walk.inputs[0] | {node: found[node] for node in blocks.ends(section)}
