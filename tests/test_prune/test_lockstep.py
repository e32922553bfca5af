"""A model and a graph run side by side: alike exactly when the model makes the graph's calls."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.graph import trace
from penjing.graph.tree import attach_all, graph_module, held_tensors
from penjing.prune.compare import Reference, compare, interpret, relative_error, run
from penjing.prune.lockstep import departure, same


class Net(nn.Module):
    """Composite ops, an in-place op, views, several outputs; ``between`` is what a class may do otherwise."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.between = between

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_NCHW to two heads."""
        x = torch.relu_(self.norm(self.conv(x)))
        left, right = x.mean((2, 3)).chunk(2, dim=1)
        return self.fc(self.between(torch.cat([right, left], 1))), left.transpose(0, 1)


def once(model: nn.Module, x: Tensor) -> Any:
    """One pass on these very tensors."""
    with torch.no_grad():
        return model(x)


def alike(model: nn.Module, of: nn.Module, x: Tensor) -> bool:
    """Whether ``model`` makes the calls of the graph of ``of``, whose tensors it holds."""
    return departure(lambda: once(model, x), trace(of, x).module, [x]) is None


def holding(model: nn.Module, other: nn.Module) -> nn.Module:
    """``other`` with the very tensors of ``model``."""
    attach_all(other, tuple(held_tensors(model)))
    return other.eval()


def test_a_model_is_like_its_own_graph() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    assert alike(net, net, x)
    assert compare(net, Reference(trace(net, x).module, x)) == ""


def test_only_one_of_them_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    import penjing.prune.compare as module

    def never(*given: Any) -> Any:
        raise AssertionError("computed again")

    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    monkeypatch.setattr(module, "interpret", never)
    assert compare(net, Reference(graph.module, x)) == ""


def test_the_graph_runs_once_however_many_models_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    import penjing.prune.compare as module

    runs = 0

    def counted(*given: Any) -> Any:
        nonlocal runs
        runs += 1
        return interpret(*given)

    monkeypatch.setattr(module, "interpret", counted)
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    reference = Reference(trace(net, x).module, x)
    others = [copy.deepcopy(net) for _ in range(3)]  # in other memory, so that each is compared by numbers
    with torch.no_grad():
        next(others[2].parameters()).mul_(2)
    told = [compare(other, reference) for other in others]
    assert told[:2] == ["", ""]
    assert "differs from the sliced graph's" in told[2]
    assert runs == 1


def test_the_models_values_are_the_true_ones() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    found: list[Any] = []

    def remembered() -> Any:
        found.append(once(net, x))
        return found[0]

    assert departure(remembered, trace(net, x).module, [x]) is None
    assert relative_error(found[0], run(net, x)) == 0.0


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x * 1.0,  # one call more
        lambda x: x.flip(1).flip(1),  # the same numbers otherwise
        lambda x: x.clone(),  # the same numbers in other memory
        lambda x: x + 1e-12,
    ],
)
def test_a_call_more_departs_whatever_its_numbers(between: Callable[[Tensor], Tensor]) -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    other = holding(net, Net(between))
    assert not alike(other, net, x)
    assert not alike(net, other, x)  # one call fewer
    # told apart by numbers then, and they agree
    assert compare(other, Reference(trace(net, x).module, x)) == ""


def test_another_constant_or_another_tensor_departs() -> None:
    x = torch.randn(2, 3, 8, 8)
    net, scaled, twice = (Net(lambda x, f=f: x * f).eval() for f in (3.0, 3.0, 2.0))  # type: ignore[misc]
    assert alike(holding(net, scaled), net, x)
    assert not alike(holding(net, twice), net, x)
    assert not alike(copy.deepcopy(net), net, x)  # equal weights in other memory prove nothing
    assert "differs" in compare(copy.deepcopy(twice), Reference(trace(net, x).module, x))
    named = compare(twice, Reference(trace(net, x).module, x))  # on the same tensors the number is told
    assert re.fullmatch(r"it computes with 2 at \S*test_lockstep.py:\d+ where the original has 3", named)


def test_a_swallowed_departure_is_remembered() -> None:
    def careful(x: Tensor) -> Tensor:
        with contextlib.suppress(Exception):
            x.exp()
        return x

    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    assert not alike(holding(net, Net(careful)), net, x)


def test_a_model_that_raises_says_so_itself() -> None:
    def broken(x: Tensor) -> Tensor:
        return x.view(7, 7)

    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    other = holding(net, Net(broken))
    assert not alike(other, net, x)
    with pytest.raises(RuntimeError, match="invalid for input"):
        compare(other, Reference(trace(net, x).module, x))


def test_outputs_in_another_order_depart() -> None:
    class Swapped(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = super().forward(x)
            return second, first

    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    assert not alike(holding(net, Swapped()), net, x)


def test_arguments_are_the_same_by_memory_type_and_value() -> None:
    x = torch.zeros(2, 2, dtype=torch.complex64)
    assert same([x, 1, None, "a"], (x.view(2, 2), 1, None, "a"))
    for a, b in ((x, x.clone()), (x, x.t()), (x, x[0]), (x, x.conj()), (1, 1.0), (1, True), ([1], [1, 2])):
        assert not same(a, b)
    assert same({"p": 1}, {"p": 1})
    assert not same({"p": 1}, {"q": 1})
    assert not same(x, 1)


def test_a_graph_module_holds_the_tensors_under_their_names() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    held = tuple(held_tensors(net))
    built = graph_module(held, graph.module.graph, "Built")
    assert [(h.name, id(h.tensor), h.persistent) for h in held_tensors(built)] == [
        (h.name, id(h.tensor), h.persistent) for h in held
    ]
    assert relative_error(built(x), net(x)) < 1e-6


@pytest.mark.parametrize("cached", [None, True])
def test_casts_by_autocast_do_not_wait_for_each_other(cached: bool | None) -> None:
    """A cast that goes into autocast's cache holds a lock, and the graph's op casts in the midst of it."""

    class Half(Net):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
                x = self.conv(x)
            return self.fc(x.float().mean((2, 3)))  # type: ignore[no-any-return]

    net, x = Half().eval(), torch.randn(2, 3, 8, 8)
    assert alike(net, net, x) is (cached is None)
    assert torch.is_autocast_cache_enabled()
