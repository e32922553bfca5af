"""Values of all samples wait in front of a layer: how much memory that takes is known and bounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from penjing.graph import trace
from penjing.prune import prune
from penjing.prune.criteria.obs import BrainSurgeon
from penjing.prune.reconstruct import ReconstructConfig, reconstruct
from penjing.prune.walk import Walk, footprint, samples_within


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 49, 5),
    ).eval()


def test_a_small_batch_tells_the_memory_of_many() -> None:
    graph = trace(net(), torch.randn(2, 3, 16, 16))
    one = footprint(graph, [torch.randn(64, 3, 16, 16)[:2]])
    walk = Walk(graph, [[torch.randn(7, 3, 16, 16)] for _ in range(3)])
    walk.run()
    assert (walk.footprint.peak, walk.footprint.total) == (21 * one.peak, 21 * one.total)
    # the widest moment: the ReLU's input and output, 8 channels each
    assert one.peak == 2 * 8 * 16 * 16 * 4


def test_as_many_samples_as_fit_and_a_few_at_least() -> None:
    graph = trace(net(), torch.randn(2, 3, 16, 16))
    one = footprint(graph, [torch.randn(2, 3, 16, 16)])
    assert samples_within(20.5 * one.peak / 2**30, one) == 20
    assert samples_within(20.5 * one.peak / 2**30, one, one) == 10
    assert samples_within(1e-12, one) == 8


@pytest.mark.parametrize(("gibibytes", "samples"), [(4.0, 96), (1e-3, 40)])
def test_what_does_not_fit_is_left_out_and_said(gibibytes: float, samples: int) -> None:
    model, data = net(), [torch.randn(32, 3, 16, 16) for _ in range(3)]
    criterion = BrainSurgeon(max_memory=gibibytes)
    pruned = prune(model, data[0][:2], criterion=criterion, ratio=0.4, data=data)
    refitted = reconstruct(pruned.model, model, pruned.plan, data, ReconstructConfig(max_memory=gibibytes))
    assert refitted.num_samples == samples
    assert any("samples were used" in note for note in refitted.notes) == (samples < 96)
    first = torch.cat(data)[: refitted.num_samples]
    again = reconstruct(pruned.model, model, pruned.plan, list(torch.split(first, 32)), ReconstructConfig())
    for mine, its in zip(refitted.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, its)
