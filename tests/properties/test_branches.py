"""Residual branches taken out whole: the shortcut is left, with every structure and with widths too."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import Program, RandomNetwork, programs
from small_networks import NETWORKS, build
from torch import Tensor, nn

from penjing.graph import GraphModel, couple, trace
from penjing.graph.branches import WithoutBranches, cut, find_branches
from penjing.prune import Plan, apply, masked_equivalence, prune
from penjing.prune.compare import relative_error, run

unhurried = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@cache
def residual(name: str) -> tuple[nn.Module, tuple[Tensor, ...], tuple[str, ...]]:
    """A network and the names of every second of its branches."""
    model, inputs = build(name)
    return model, inputs, tuple(branch.name for branch in find_branches(trace(model, inputs)))[::2]


WITH_BRANCHES = [name for name in NETWORKS if residual(name)[2]]


def test_most_families_are_covered() -> None:
    assert {"residual", "transformer", "flipped_residual"} <= set(WITH_BRANCHES)


@pytest.mark.parametrize("name", WITH_BRANCHES)
def test_masked_equivalence_with_and_without_widths(name: str) -> None:
    model, inputs, gone = residual(name)
    for ratio in (0.0, 0.4):
        result = prune(model, inputs, ratio, "random", branches=gone)
        assert tuple(result.plan.branches) == gone
        assert not result.in_place
        assert masked_equivalence(model, result, inputs) <= 1e-4
        assert result.after["params"] == sum(p.numel() for p in result.model.parameters())
        assert result.before["params"] == sum(p.numel() for p in model.parameters())
        shapes = {k: tuple(v.shape) for k, v in result.model.state_dict().items()}
        assert shapes == result.plan.new_shapes


@pytest.mark.parametrize("name", WITH_BRANCHES)
def test_the_plan_alone_gives_the_model_again(name: str) -> None:
    model, inputs, gone = residual(name)
    result = prune(model, inputs, 0.4, "random", branches=gone)
    plan = Plan.from_dict(json.loads(json.dumps(result.plan.to_dict())))
    assert plan == result.plan
    again = apply(model, plan, inputs)
    assert again.before == result.before
    assert again.after == result.after
    ours, theirs = again.model.state_dict(), result.model.state_dict()
    sliced = plan.slice_state(model.state_dict())
    assert ours.keys() == theirs.keys() == sliced.keys()
    assert all(torch.equal(ours[k], theirs[k]) and torch.equal(sliced[k], theirs[k]) for k in ours)
    assert relative_error(run(again.model, inputs), run(result.model, inputs)) <= 1e-6


@pytest.mark.parametrize("name", WITH_BRANCHES)
def test_branches_after_widths_compose(name: str) -> None:
    """First narrower, then shorter: the composed plan does both to the original."""
    model, inputs, gone = residual(name)
    narrow = prune(model, inputs, 0.4, "random")
    short = prune(narrow.model, inputs, 0.0, branches=gone)
    both = narrow.plan.then(short.plan)
    once = apply(model, both, inputs)
    assert both.new_shapes == short.plan.new_shapes
    assert relative_error(run(once.model, inputs), run(short.model, inputs)) <= 1e-5
    assert masked_equivalence(model, both, inputs) <= 1e-4


@settings(unhurried, max_examples=25)
@given(program=programs, chosen=st.sets(st.integers(0, 5)))
def test_random_networks(program: Program, chosen: set[int]) -> None:
    with torch.random.fork_rng():
        model = RandomNetwork(program).eval()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(program.seed))
    graph = trace(model, x)
    gone = [branch for at, branch in enumerate(find_branches(graph)) if at in chosen]
    short = GraphModel(cut(graph, gone))
    expected = WithoutBranches(graph, gone).run(x, enable_io_processing=False)
    assert relative_error(run(short, x), expected) <= 1e-5
    assert not couple(trace(short, x)).frozen or couple(graph).frozen
    if gone:
        result = prune(model, x, 0.3, "random", branches=[branch.name for branch in gone])
        assert masked_equivalence(model, result, x) <= 1e-4
