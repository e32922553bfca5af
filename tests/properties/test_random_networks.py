"""Masked equivalence, exact counts and training over random networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import Program, RandomNetwork, programs

from penjing.graph import count, couple, trace
from penjing.prune import allocate, make_criterion, prune_slots
from penjing.prune.compare import relative_error, run
from penjing.prune.criteria import Material
from penjing.prune.masked import masked_output
from penjing.prune.slots import by_leaf

unhurried = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check(program: Program, ratio: float) -> None:
    with torch.random.fork_rng():
        model = RandomNetwork(program).eval()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(program.seed))
    graph = trace(model, x)
    coupling = couple(graph)
    assert not [f for f in coupling.frozen if f.reason.startswith("no rule")]
    scores = make_criterion("random").scores(Material(model, graph, coupling, seed=program.seed))
    # by ids: every factor, also where a dimension loses more by their product
    kept = allocate(coupling.groups, scores, ratios={"*:*": ratio} if coupling.groups else {})
    result = prune_slots(model, x, graph, coupling, kept)
    expected, leak = masked_output(graph, coupling, by_leaf(coupling, kept), x)
    assert leak <= 1e-4
    assert relative_error(run(result.model, x), expected) <= 1e-4
    assert result.after["params"] == sum(p.numel() for p in result.model.parameters())
    result.model.train()
    result.model(x).square().mean().backward()
    assert all(p.grad is not None for p in result.model.parameters())


@settings(unhurried, max_examples=40)
@given(program=programs, ratio=st.sampled_from([0.3, 0.5, 0.8]))
def test_random_networks(program: Program, ratio: float) -> None:
    check(program, ratio)


@settings(unhurried, max_examples=15)
@given(program=programs, ratio=st.sampled_from([0.3, 0.5, 0.8]))
def test_no_dimension_loses_more_than_the_ratio(program: Program, ratio: float) -> None:
    with torch.random.fork_rng():
        model = RandomNetwork(program).eval()
    x = torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    coupling = couple(graph)
    scores = make_criterion("random").scores(Material(model, graph, coupling, seed=program.seed))
    kept = by_leaf(coupling, allocate(coupling.groups, scores, ratio=ratio))
    for name, axes in coupling.tensors.items():
        for axis in axes:
            assert count(axis, kept) >= (1 - ratio) * axis.size - 1e-6, name


@pytest.mark.slow
@settings(unhurried, max_examples=400)
@given(program=programs, ratio=st.floats(0.1, 0.9))
def test_many_random_networks(program: Program, ratio: float) -> None:
    check(program, ratio)
