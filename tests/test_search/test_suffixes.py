"""A run from the first op of a group gives, to the last bit, what the whole masked run gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.graph import Group, couple, trace
from penjing.prune.masked import masked_output
from penjing.search.suffixes import Answer, first_nodes, visit_groups


class InPlace(nn.Module):
    """Ops in place on values that several later ops read, one of them through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        view = h.flatten(2)
        h.mul_(2).add_(1)
        g = torch.relu_(self.b(h))
        h += self.c(g)
        out: Tensor = self.out(view.mean(2) + h.mean((2, 3)))
        return out


class Branches(nn.Module):
    """Concatenation and halves, so that values live for long."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(10, 8, 1)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        value, gate = self.norm(self.c(torch.cat([h, self.b(h)], 1))).chunk(2, 1)
        out: Tensor = self.out((value * gate.sigmoid()).amax((2, 3)))
        return out


@pytest.mark.parametrize("net", [InPlace, Branches])
def test_same_as_the_whole_run(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = net().eval()
    x = torch.randn(5, 3, 7, 7)
    graph = trace(model, x[:2])
    coupling = couple(graph)
    before, visited = x.clone(), []

    def visit(group: Group, answer: Answer) -> None:
        visited.append(group.id)
        for count in (1, group.size // 2, group.size):
            kept = np.arange(count)
            whole, _ = masked_output(graph, coupling, {group.leaf: kept}, x)
            assert torch.equal(_tensor(answer(kept)), _tensor(whole)), (group.id, count)

    visit_groups(graph, coupling, coupling.groups, x, visit)
    assert sorted(visited) == sorted(group.id for group in coupling.groups)
    assert len(visited) >= 2
    assert torch.equal(x, before)


def test_starts_where_the_group_does() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = trace(model, torch.zeros(2, 3))
    coupling = couple(graph)
    nodes = list(graph.module.graph.nodes)
    first = [first_nodes(graph, coupling)[group.leaf] for group in coupling.groups]
    assert [str(node.target) for node in first] == ["aten.linear.default"] * 2
    assert nodes.index(first[0]) < nodes.index(first[1])


def _tensor(value: Any) -> Tensor:
    (found,) = [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return found
