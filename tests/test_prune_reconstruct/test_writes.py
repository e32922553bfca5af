"""Values that are written into by one name and read by another: they are what the network computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from penjing.graph import trace
from penjing.prune import prune
from penjing.prune.reconstruct import reconstruct
from penjing.prune.walk import Walk


class Collected(nn.Module):
    """A layer of its own for each series, collected in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 3, 5)
        for index, layer in enumerate(self.layers):
            out[:, index] = layer(x[:, index])
        return out


class Written(nn.Module):
    """Views written into, between layers that read the whole; and the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.2, 2.0, 8))
        self.a, self.b, self.c, self.head = (
            nn.Linear(n, m) for n, m in ((6, 16), (16, 16), (16, 16), (16, 3))
        )

    def forward(self, x: Tensor) -> Tensor:
        x[:, 1:3] *= 2
        y = self.a(x).relu_()
        z = self.b(y)
        z[:, :8] *= self.scale
        z[:, 8:].sigmoid_()
        w = z + y
        first = self.c(w)
        w[:, 0] = 0
        return self.head(first + w)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("make", "shape"), [(Collected, (24, 3, 6)), (Written, (24, 6))])
def test_a_walk_sees_what_was_written(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    given, graph = x.clone(), trace(model, x.clone())
    walk = Walk(graph, [[x], [x[:2]]])
    walk.run()
    output = next(node for node in graph.module.graph.nodes if node.op == "output").all_input_nodes[0]
    torch.testing.assert_close(x, given)
    for value, inputs in zip(walk.values(output), (given, given[:2]), strict=True):
        torch.testing.assert_close(value, model(inputs.clone()))


@pytest.mark.parametrize(("make", "shape"), [(Collected, (48, 3, 6)), (Written, (48, 6))])
def test_the_refit_reaches_layers_behind_writes(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    data = [torch.randn(shape) for _ in range(4)]
    given = copy.deepcopy(data)
    pruned = prune(model, data[0].clone(), ratio=0.4)
    found = reconstruct(pruned.model, model, pruned.plan, data)
    reading = {name for name, dims in pruned.plan.tensors.items() if 1 in dims}
    assert reading <= {layer.layer for layer in found.layers}
    assert not found.notes
    assert found.error_after < 0.7 * found.error_before
    assert all(torch.equal(one, other) for one, other in zip(data, given, strict=True))
