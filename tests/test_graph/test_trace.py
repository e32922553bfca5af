"""Tracing: names, shapes, sources, signatures, errors; and the graph as a model."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import PruneError, TraceError
from penjing.graph import Graph, GraphModel, couple, trace
from penjing.graph.tree import Held
from penjing.graph.views import eval_view
from penjing.prune import prune


class Net(nn.Module):
    """Shared and unused parameters, buffers, a plain tensor attribute, batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.idle = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)
        self.shift: Tensor
        self.hidden: Tensor
        self.register_buffer("shift", torch.ones(8, 1, 1))
        self.register_buffer("hidden", torch.full((8, 1, 1), 2.0), persistent=False)
        self.plain = torch.tensor(3.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.two(self.one(self.norm(self.conv(x)).relu())) + self.shift * self.hidden * self.plain
        n, _, h, w = y.shape
        return {"map": y, "flat": self.drop(y).reshape(n * 2, -1, h * w).mean(-1)}


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Net(), torch.randn(1, 3, 6, 6))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


def test_names_and_tensors(graph: Graph) -> None:
    net = Net()
    assert set(graph.params) == {name for name, _ in net.named_parameters()}
    assert graph.aliases == {"two.weight": "one.weight"}
    assert set(dict(net.named_buffers())) <= set(graph.buffers)
    read = {node.target for node in graph.module.graph.nodes if node.op == "get_attr"}
    assert "one.weight" in read
    assert "two.weight" not in read
    assert read <= {*graph.params, *graph.buffers}
    assert graph.batch_dim
    assert graph.notes == ()


def test_shapes_and_sources(graph: Graph) -> None:
    node = next(n for n in graph.module.graph.nodes if str(n.target) == "aten.conv2d.default")
    assert [int(size) for size in graph.shape(node)[1:]] == [8, 6, 6]
    assert graph.source(node).startswith("test_graph/test_trace.py:")


def test_the_model_is_left_as_it_was() -> None:
    net = Net().train()
    net.drop.eval()
    before = copy.deepcopy(net.state_dict())
    graph = trace(net, torch.randn(2, 3, 6, 6))
    assert net.training
    assert net.norm.training
    assert not net.drop.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert graph.params["conv.weight"] is net.conv.weight
    lstm = nn.LSTM(4, 3)
    trace(lstm, torch.randn(5, 2, 4))
    assert all(a is b for a, b in zip(lstm._flat_weights, lstm.parameters(), strict=True))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graph_and_graph_model_compute_what_the_model_does(batch: int) -> None:
    net, x = Net(), torch.randn(batch, 3, 6, 6)
    net(torch.randn(8, 3, 6, 6))
    graph = trace(net, torch.randn(1, 3, 6, 6))
    expected = net.eval()(x)
    model = GraphModel(graph)
    for each in (graph, model, copy.deepcopy(model), GraphModel(trace(model, x))):
        same(each(x), expected)
    same(model(x=x), expected)


def test_graph_model_keeps_the_state_dict_and_owns_its_tensors(graph: Graph) -> None:
    model = GraphModel(graph)
    names = set(Net().state_dict())
    assert set(model.state_dict()) == names
    twin = copy.deepcopy(model)
    assert set(twin.state_dict()) == names
    assert twin.get_parameter("one.weight") is twin.get_parameter("two.weight")
    for other in (graph.params["conv.weight"], twin.get_parameter("conv.weight")):
        assert other is not model.get_parameter("conv.weight")
        assert other.data_ptr() != model.get_parameter("conv.weight").data_ptr()
    model.load_state_dict(Net().state_dict())


def test_graph_model_trains_like_the_model() -> None:
    net, x = Net(), torch.randn(4, 3, 6, 6)
    model = GraphModel(trace(net, x))
    for each in (net, model):
        each.train()
        each(x)["map"].square().mean().backward()
    for name, param in net.named_parameters():
        grad = model.get_parameter(name).grad
        assert (grad is None) == (param.grad is None)
        if param.grad is not None:
            torch.testing.assert_close(grad, param.grad)
    for name, buffer in net.named_buffers():
        if name in net.state_dict() and "num_batches" not in name:
            torch.testing.assert_close(model.get_buffer(name), buffer)
    assert not torch.equal(model(x)["flat"], model(x)["flat"])  # dropout draws
    model.eval()
    same(model(x), copy.deepcopy(model)(x))
    assert copy.deepcopy(model.train()).training


@pytest.mark.parametrize("momentum", [0.3, None])
def test_graph_model_counts_batches_and_averages_like_the_model(momentum: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU())
    first = GraphModel(trace(model, torch.randn(2, 3, 6, 6)))
    again = GraphModel(trace(copy.deepcopy(first), torch.randn(2, 3, 6, 6)))
    for m in (model, first, again):
        m.train()
    for _ in range(3):
        x = torch.randn(4, 3, 6, 6)
        torch.testing.assert_close(first(x), model(x))
        again(x)
    for ours in (first, again):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
    assert int(first.get_buffer("1.num_batches_tracked")) == 3
    first.eval()(torch.randn(2, 3, 6, 6))
    assert int(first.get_buffer("1.num_batches_tracked")) == 3


class Starred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, first: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        return self.fc(first + sum(others)) * named.get("scale", 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 2])
def test_starred_arguments_keep_a_free_batch(count: int) -> None:
    graph = trace(Starred(), tuple(torch.randn(count, 4) for _ in range(3)))
    assert graph.batch_dim
    assert not graph.notes
    assert graph(*(torch.randn(5, 4) for _ in range(3))).shape == (5, 3)
    graph = trace(Starred(), {"first": torch.randn(count, 4), "scale": torch.randn(count, 3)})
    assert graph.batch_dim
    assert graph(first=torch.randn(5, 4), scale=torch.randn(5, 3)).shape == (5, 3)


class OnlyInTraining(nn.Module):
    """An auxiliary classifier, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None)
        self.head, self.aux = nn.Linear(8, 3), nn.Linear(8, 3)
        self.dead = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.body(x)).relu()
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_branches_of_training_only_are_coupled() -> None:
    model = OnlyInTraining().eval()
    graph = trace(model, torch.randn(2, 4))
    assert graph.training is not None
    assert not model.training
    assert model.norm.momentum is None
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[arg-type]
    coupling = couple(graph)
    group = next(g for g in coupling.groups if g.id == "body.weight:0")
    assert ("aux.weight", 1) in {(m.tensor, m.dim) for m in group.members}
    unused = {p for f in coupling.frozen if f.kind == "unused" for p in f.params}
    assert unused == {"dead:0"}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, first: Tensor, second: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return self.a(first) + self.b(second) * scale, self.b(second)


class TakesDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        result: Tensor = self.a(batch["x"]) * batch["y"]
        return result


def test_inputs_as_tuple_keywords_and_a_dict_argument() -> None:
    first, second = torch.randn(3, 4), torch.randn(3, 3)
    two = Two().eval()
    for given in ((first, second), {"first": first, "second": second}):
        graph = trace(two, given)
        assert graph.batch_dim
        wide = torch.randn(7, 4), torch.randn(7, 3)
        result = graph(*wide) if isinstance(given, tuple) else graph(first=wide[0], second=wide[1])
        torch.testing.assert_close(result, two(*wide))
    batch = {"x": torch.randn(2, 4), "y": torch.randn(2, 6)}
    takes = TakesDict().eval()
    torch.testing.assert_close(trace(takes, batch)(batch), takes(batch))


class Nodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        result: Tensor = adjacency @ (adjacency @ self.a(x))
        return result


def test_a_matrix_that_holds_no_samples_is_named_where_the_batch_was_read_off_it() -> None:
    fixed = trace(Nodes().eval(), (torch.rand(5, 5), torch.randn(3, 5, 4))).fixed_batch
    assert "'adjacency' is 5×5" in fixed
    assert "first input" not in trace(FixedBatch().eval(), torch.randn(2, 4)).fixed_batch


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.a(x) * 2 if x.shape[0] == 2 else x
        return result


def test_a_batch_that_cannot_be_free_is_fixed_with_a_note() -> None:
    net, x = FixedBatch().eval(), torch.randn(2, 4)
    graph = trace(net, x)
    assert not graph.batch_dim
    assert re.search(r"batch size is fixed at test_graph/test_trace\.py:\d+: ", graph.fixed_batch)
    torch.testing.assert_close(graph(x), net(x))
    served = copy.deepcopy(GraphModel(graph))
    with pytest.warns(
        UserWarning, match=r"sizes \[3, 4\].*traced with \[2, 4\] \(the batch size is fixed at"
    ):
        served(torch.randn(3, 4))
    assert not trace(nn.Linear(4, 4), x, dynamic_batch=False).batch_dim


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return {"logits": y.relu(), "past": Held("a", y, False)}


def test_an_output_that_no_graph_gives_is_left_out_with_a_note() -> None:
    net, x = Remembers().eval(), torch.randn(2, 4)
    graph = trace(net, x)
    assert "Held" in graph.notes[0]
    assert graph.batch_dim
    assert graph(x)["past"] is None
    torch.testing.assert_close(graph(x)["logits"], net(x)["logits"])
    assert isinstance(net(x)["past"], Held)


class Contexts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        with torch.autocast("cpu", enabled=False):
            y = y.float() * 2
        with torch.no_grad():
            z = self.b(y) + 1
        result: Tensor = y + z
        return result


def test_autocast_and_no_grad_blocks_are_inlined() -> None:
    net, x = Contexts().eval(), torch.randn(2, 4)
    model = GraphModel(trace(net, x))
    torch.testing.assert_close(model(x), net(x))
    model(x).sum().backward()
    assert model.get_parameter("b.weight").grad is None
    assert model.get_parameter("a.weight").grad is not None


def _broken_weights() -> nn.Module:
    net = Two()
    with torch.no_grad():
        net.b.weight[0, 0] = float("nan")
    return net


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (_broken_weights(), (torch.randn(2, 4), torch.randn(2, 3)), ["b.weight", "NaN"]),
        (nn.Linear(4, 4), torch.randn(2, 5), ["(2, 5)", "example_inputs"]),
        (Branches(), torch.randn(2, 5), ["values of its inputs", "test_trace.py", "torch.where"]),
    ],
)
def test_errors_name_cause_and_remedy(model: nn.Module, inputs: Any, words: list[str]) -> None:
    with pytest.raises(TraceError) as caught:
        trace(model, inputs)
    assert all(word in str(caught.value) for word in words)
    assert str(caught.value).startswith("trace")


class _Blanked(torch.autograd.Function):
    """Softmax with blanks, written over its own output as its backward knows how to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.softmax(-1).masked_fill_(x < -100, 0.0)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return out * (grad - (grad * out).sum(-1, keepdim=True))  # type: ignore[no-any-return]


class Blanks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(_Blanked.apply(self.a(x)))  # type: ignore[no-any-return]


def test_a_custom_function_that_writes_over_its_output_trains() -> None:
    torch.manual_seed(0)
    model, x = Blanks().eval(), torch.randn(4, 5)
    network = GraphModel(trace(model, x))
    torch.testing.assert_close(network(x), model(x))
    network(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(network.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_torch_has_quantized_or_exported_is_named() -> None:
    x, model = torch.zeros(2, 3), nn.Sequential(nn.Linear(3, 4)).eval()
    exported = torch.export.export(model, (x,))
    with pytest.raises(TraceError, match=r"torch\.export made it.*\.pt2 file"):
        trace(exported.module(), x)
    with pytest.raises(
        PruneError, match=r"is a ExportedProgram\. Give a torch\.nn\.Module or its \.pt2 file"
    ):
        prune(exported, x)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match=r"at 0: torch has quantized it already \(Linear\)"):
        trace(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}), x)  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_module_is_refused_by_name(inside: bool) -> None:
    scripted: nn.Module = torch.jit.script(nn.BatchNorm1d(4))
    with pytest.raises(TraceError, match=r"torch\.jit has compiled it.*Give the Python module"):
        trace(nn.Sequential(nn.Linear(4, 4), scripted) if inside else scripted, torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_the_eval_view_of_a_compiled_module_ends_as_it_began() -> None:
    scripted: nn.Module = torch.jit.script(nn.BatchNorm1d(4))
    seen = dict(scripted.named_buffers())["num_batches_tracked"]
    with eval_view(scripted) as written:
        assert not scripted.training
        seen.add_(1)
    assert written == {"num_batches_tracked"}
    assert [part.training for part in scripted.modules()] == [True]
    assert int(seen) == 0


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_names_that_a_traced_network_needs_are_refused(name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(3, 2))
    with pytest.raises(TraceError, match=rf"{name}.*of its own.*Rename"):
        trace(model, torch.randn(2, 3))
    assert trace(nn.Sequential(model), torch.randn(2, 3)).params


@pytest.mark.parametrize("name", ["cumulative_norms", "_norms", "_before"])
def test_names_that_a_traced_network_leaves_free(name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(3, 2))
    x = torch.randn(2, 3)
    again = GraphModel(trace(GraphModel(trace(model, x)), x))
    assert torch.equal(again(x), model(x))
    setattr(plain := nn.Linear(3, 2), name, 7)
    assert trace(plain, x).params


@pytest.mark.parametrize("count", ["len(x)", "int(x.shape[0])", "2"])
def test_the_line_that_fixes_the_batch_is_named(count: str, tmp_path: Path) -> None:
    lines = (
        "from torch import nn",
        "class Net(nn.Linear):",
        "    def forward(self, x):",
        "        y = super().forward(x)",
        f"        n = {count}; y = y.reshape(n, 2, 2)",
        "        return y.sum(1)",
    )
    file = tmp_path / "net.py"
    file.write_text("\n".join(lines), encoding="utf-8")
    net = run_path(str(file))["Net"](4, 4)
    assert f"/{file.name}:5: " in trace(net, torch.randn(2, 4)).fixed_batch


@pytest.mark.parametrize("name", ["_switch", "_assemble"])
def test_modules_may_be_called_as_they_like(name: str) -> None:
    net = nn.Sequential(OrderedDict([(name, nn.Linear(4, 4)), ("drop", nn.Dropout())])).eval()
    served, x = copy.deepcopy(GraphModel(trace(net, torch.randn(2, 4)))), torch.randn(3, 4)
    torch.testing.assert_close(served(x), net(x))
    assert served.state_dict().keys() == net.state_dict().keys()
    assert not torch.equal(served.train()(x), net(x))
