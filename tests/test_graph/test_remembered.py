"""Forwards that keep things on their modules: no trace leaves its stand-ins there, or goes by what was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.errors import ExportError, TraceError
from penjing.graph import trace
from penjing.graph.remembered import forgotten, put_back
from penjing.prune import masked_equivalence


class Scaling(nn.Module):
    """Normalizes on the way in and remembers what undoes it on the way out, as forecasters do."""

    mean: Tensor
    std: Tensor
    extra: int

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {"calls": 0}
        self.sizes: list[Any] = []
        self.hidden, self.out = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.mean, self.std = x.mean(1, keepdim=True).detach(), x.std(1, keepdim=True).detach() + 1e-5
        self.seen["last"] = (x - self.mean) / self.std
        self.sizes.append(x.shape[0])
        return self.out(self.hidden(self.seen["last"]).relu()) * self.std + self.mean  # type: ignore[no-any-return]


class Anchored(nn.Module):
    """Makes its anchors when the size of the map is a new one, of strides that are a plain tensor."""

    shape: Any = None
    anchors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stride = torch.tensor([8.0, 16.0])
        self.body, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body(x).relu()).flatten(2)
        if self.shape != x.shape:
            self.shape = x.shape
            self.anchors = torch.cat([torch.full((1, y.shape[2]), stride) for stride in self.stride])
        count: Any = self.stride[0]  # a tensor that torch reads for a number
        return y * self.anchors + torch.arange(count).sum()  # type: ignore[no-any-return]


class Stateful(nn.Module):
    """Answers by what it saw before: written into a plain tensor, into a buffer, or kept anew."""

    state: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.hidden, self.out = nn.Linear(6, 16), nn.Linear(16, 6)
        if how == "buffer":
            self.register_buffer("state", torch.zeros(6))
        else:
            self.state = torch.zeros(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.hidden(x).relu())
        if self.how == "anew":
            self.state = 0.5 * self.state + y.mean(0).detach()
        else:
            self.state.mul_(0.5).add_(y.mean(0).detach())
        return y - self.state  # type: ignore[no-any-return]


class Turning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        size = int(x.sum())
        return self.a(x)[:, : torch.zeros(size).numel()]  # type: ignore[no-any-return]


class Constrained(nn.Conv1d):
    """Keeps its weights within a norm by setting them anew in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1)
        return super().forward(x)


def _kept(model: nn.Module) -> dict[str, Any]:
    common = vars(nn.Module())
    return {name: value for name, value in vars(model).items() if name not in common}


@pytest.mark.parametrize(("make", "shape"), [(Scaling, (4, 6)), (Anchored, (2, 3, 8, 8))])
@pytest.mark.parametrize("called", [False, True])
def test_nothing_of_the_trace_stays_behind(
    make: type[nn.Module], shape: tuple[int, ...], called: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x, other = make().eval(), torch.randn(shape), torch.randn(3, *shape[1:])
    if called:
        model(torch.randn(5, *shape[1:]))
    before, held = _kept(model), {name: copy.copy(value) for name, value in _kept(model).items()}
    pruned = pj.prune(model, x, ratio=0.5)
    pj.export(pruned.model, tmp_path, formats=("onnx",), example_inputs=x)
    assert pruned.plan.groups
    assert masked_equivalence(model, pruned, other) < 1e-5
    for each in (model, pruned.model):
        torch.testing.assert_close(each(other), copy.deepcopy(each)(other))
    model = make().eval() if not called else model
    trace(model, x)
    assert _kept(model).keys() == (held.keys() if called else _kept(make()).keys())
    assert called == ("shape" in before or "mean" in before)


def test_what_was_kept_comes_back() -> None:
    model = Scaling()
    model(torch.randn(2, 6))
    before, contents = _kept(model), (dict(model.seen), list(model.sizes))
    with forgotten(model):
        model(torch.randn(3, 6))
        model.extra = 1
        del model.std
    assert _kept(model).keys() == before.keys()
    assert all(_kept(model)[name] is value for name, value in before.items())
    assert model.seen.keys() == contents[0].keys()
    assert model.seen["last"] is contents[0]["last"]
    assert model.sizes == contents[1]


@pytest.mark.parametrize("how", ["in place", "buffer", "anew"])
def test_the_state_of_the_original_is_its_own(how: str) -> None:
    torch.manual_seed(0)
    model, x, data = Stateful(how).eval(), torch.randn(4, 6), [torch.randn(8, 6) for _ in range(2)]
    with torch.no_grad():
        model(x)
    held, numbers = model.state, model.state.clone()
    pruned = pj.prune(model, x, ratio=0.5, criterion="taylor", data=data, reconstruct=True)
    pj.inspect(model, x)
    pj.recover(pruned.model, model, data, pj.RecoverConfig(epochs=1), val=data, plan=pruned.plan)
    assert model.state is held
    assert torch.equal(model.state, numbers)
    again = pj.prune(model, x, ratio=0.5)
    assert again.in_place, again.reason
    assert torch.equal(again.model.state, numbers)  # type: ignore[arg-type]


class Table(nn.Module):
    """Keeps the table of its first call in a buffer that was empty."""

    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 12)
        self.outer = nn.Linear(12, 3)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            self.register_buffer("bias", torch.arange(x.shape[1], dtype=x.dtype)[:, None], persistent=False)
        assert self.bias is not None
        found: Tensor = self.outer(torch.relu(self.inner(x) + self.bias))
        return found


def test_a_table_that_the_first_call_puts_into_an_empty_buffer_is_taken_out(tmp_path: Path) -> None:
    model, x = Table().eval(), torch.randn(2, 5, 6)
    result = pj.prune(model, x, ratio=0.5)
    assert result.in_place, result.reason
    assert masked_equivalence(model, result, x) < 1e-5
    for network in (model, result.model):
        pj.export(network, tmp_path, formats=("onnx",), example_inputs=x)
        assert dict(network.named_buffers()) == {}
    assert result.model(torch.randn(2, 7, 6)).shape == (2, 7, 3)


def test_a_file_says_what_its_calls_start_from(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    for how in ("buffer", "anew"):
        file = pj.export(Stateful(how).eval(), tmp_path, formats=("onnx",), example_inputs=x)["onnx"]
        assert "the forward writes state; every call of the file starts" in file.notes[0]
    assert not pj.export(Scaling().eval(), tmp_path, formats=("onnx",), example_inputs=x)["onnx"].notes
    with pytest.raises(ExportError, match=r"writes into a tensor that it keeps.* register_buffer"):
        pj.export(Stateful("in place").eval(), tmp_path, formats=("onnx",), example_inputs=x)


def test_a_refusal_names_the_line_of_the_network() -> None:
    with pytest.raises(TraceError, match=r"test_remembered\.py:\d+"):
        trace(Turning(), torch.rand(2, 5))


def test_weights_that_a_forward_sets_are_followed() -> None:
    model = nn.Sequential(Constrained(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, torch.randn(2, 3, 9))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    copy.deepcopy(model)


def test_statistics_that_batch_norms_write_are_put_back() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_var = torch.tensor([1.0, torch.nan, 2.0])
    with put_back(norm) as written:
        norm(torch.randn(4, 3))
    assert written == {"running_mean", "running_var", "num_batches_tracked"}
    assert norm.running_mean is not None
    assert not norm.running_mean.any()
    with put_back(norm.eval()) as written:
        norm(torch.randn(4, 3))
    assert written == set()
