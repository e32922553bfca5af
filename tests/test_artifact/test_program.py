"""A stored program is the same network: outputs and gradients bit for bit, in a process without its class."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import penjing as pj
from penjing.artifact import save_artifact
from penjing.errors import ArtifactError, ExportError
from penjing.export.program import example_inputs_of, load_program, read_program, save_program
from penjing.export.program_ops import target_name, target_named
from penjing.export.program_values import decode_tree, decode_value, encode_tree, encode_value
from penjing.graph import GraphModel, couple, trace
from penjing.models.spec import load_model
from penjing.prune.slicing import slice_graph
from penjing.prune.slots import by_leaf


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 16, 10),
    )


class Attention(nn.Module):
    """Two inputs, dict output, tied weights, a constant, an unused parameter, a size taken from the input."""

    scale: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(6, 8, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.zeros(2))
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)
        self.register_buffer("seen", torch.ones(8))

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Tensor]:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.embed(x)).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8) * self.scale * self.seen
        out = self.norm(y + shift[:, None] + torch.tensor([0.25]))
        return {"out": out @ self.head.weight, "mean": out.float().mean(dim=(1, 2)).to(torch.float64)}


class Resizing(nn.Module):
    """Its output is as large as its input was when it was traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), size=x.shape[-2:])


def test_other_sizes_than_the_traced_ones_are_warned_of(tmp_path: Path) -> None:
    traced = GraphModel(trace(Resizing(), torch.randn(2, 3, 8, 8)))
    save_program(traced, tmp_path)
    other = torch.randn(2, 3, 12, 8)
    for model in (traced, copy.deepcopy(traced), load_program(tmp_path)):
        assert model(torch.randn(5, 3, 8, 8)).shape == (5, 4, 8, 8)
        for args, kwargs in (((other,), {}), ((), {"x": other})):
            with pytest.warns(UserWarning, match=r"x has sizes \[2, 3, 12, 8\].*with \[batch, 3, 8, 8\]"):
                model(*args, **kwargs)


CASES: dict[str, tuple[Any, Any]] = {
    "cnn": (cnn, lambda b: (torch.randn(b, 3, 8, 8),)),
    "attention": (Attention, lambda b: (torch.randn(b, 5, 6), torch.randn(b, 8))),
}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    build, inputs = CASES[request.param]
    return build(), inputs


def leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def test_outputs_gradients_and_names_are_the_same_bit_for_bit(
    case: tuple[nn.Module, Any], tmp_path: Path
) -> None:
    model, inputs = case
    before = GraphModel(trace(model, inputs(2)))
    save_program(before, tmp_path)
    after = load_program(tmp_path)

    assert set(after.state_dict()) == set(model.state_dict())
    assert list(after.state_dict()) == list(before.state_dict())
    assert [name for name, _ in after.named_parameters()] == [name for name, _ in before.named_parameters()]
    for mode in (False, True):
        for batch in (1, 2, 5):
            x = inputs(batch)
            results = []
            for network in (before, after):
                network.train(mode).zero_grad()
                torch.manual_seed(1)
                out = network(*x)
                sum((leaf.double() ** 2).sum() for leaf in leaves(out)).backward()  # type: ignore[union-attr]
                results.append((out, [p.grad for p in network.parameters()], list(network.buffers())))
            assert pytree.tree_structure(results[0][0]) == pytree.tree_structure(results[1][0])
            for a, b in zip(pytree.tree_leaves(results[0]), pytree.tree_leaves(results[1]), strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


def test_the_original_agrees(case: tuple[nn.Module, Any], tmp_path: Path) -> None:
    model, inputs = case
    save_program(trace(model, inputs(2)), tmp_path)
    x = inputs(3)
    for a, b in zip(leaves(model.eval()(*x)), leaves(load_program(tmp_path)(*x)), strict=True):
        torch.testing.assert_close(a, b)


def test_tied_weights_stay_tied_and_the_state_file_is_the_state_dict(tmp_path: Path) -> None:
    model = Attention()
    save_program(trace(model, CASES["attention"][1](2)), tmp_path)
    loaded = load_program(tmp_path)
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("embed.weight")
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == set(model.state_dict()) - {"head.weight"}
    model.load_state_dict(stored | {"head.weight": stored["embed.weight"]})


def test_saving_a_loaded_program_writes_the_same_files(case: tuple[nn.Module, Any], tmp_path: Path) -> None:
    model, inputs = case
    save_program(trace(model, inputs(2)), tmp_path / "a")
    save_program(load_program(tmp_path / "a"), tmp_path / "b")
    for file in (tmp_path / "a").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    one, two = read_program(tmp_path / "a"), read_program(tmp_path / "b")
    for node in one["graph"]["nodes"] + two["graph"]["nodes"]:
        node.pop("source", None)
    assert one == two


def test_a_loaded_program_can_be_traced_and_copied(case: tuple[nn.Module, Any], tmp_path: Path) -> None:
    model, inputs = case
    save_program(trace(model, inputs(2)), tmp_path)
    loaded = copy.deepcopy(load_program(tmp_path))
    x = example_inputs_of(read_program(tmp_path), batch=3)
    x = x if isinstance(x, tuple) else (x,)
    for a, b in zip(leaves(loaded(*x)), leaves(GraphModel(trace(loaded, x))(*x)), strict=True):
        assert torch.equal(a, b)


def test_a_pruned_graph_tells_its_inputs(tmp_path: Path) -> None:
    """Where the traced graph is what pruning gives back, its artifact still says how it is called."""
    model = cnn()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    coupling = couple(graph)
    kept = by_leaf(coupling, {group.id: np.arange(1, group.size) for group in coupling.groups})
    save_program(GraphModel(slice_graph(graph, coupling, kept)), tmp_path)
    data = read_program(tmp_path)
    assert load_program(tmp_path)(example_inputs_of(data, batch=3)).shape[0] == 3
    for node in data["graph"]["nodes"]:
        node.pop("example", None)
    with pytest.raises(ArtifactError, match="does not tell the shape of its input"):
        example_inputs_of(data)


class Listed(nn.Module):
    """Takes all its inputs as one list, as a Keras network of several does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        a, b = inputs
        found: torch.Tensor = self.last(self.first(a).relu() + b)
        return found


def test_a_list_of_inputs_stays_one_argument(tmp_path: Path) -> None:
    inputs = ([torch.randn(2, 5), torch.randn(2, 4)],)
    save_artifact(tmp_path / "a", Listed(), example_inputs=inputs)
    loaded = load_model(tmp_path / "a")
    assert isinstance(loaded.example_inputs, tuple)
    assert [len(x) for x in loaded.example_inputs[0]] == [2, 2]
    made = pj.export(loaded.model, tmp_path / "out", formats=("onnx",), example_inputs=loaded.example_inputs)
    assert made.files[0].verification.relative < 1e-5


def test_memory_order_and_requires_grad_are_kept(tmp_path: Path) -> None:
    model: Any = cnn().to(memory_format=torch.channels_last)
    model[0].bias.requires_grad_(False)
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    graph = trace(model, x)
    save_program(graph, tmp_path)
    loaded = load_program(tmp_path)
    assert loaded.get_parameter("0.weight").stride() == model[0].weight.stride()
    assert not loaded.get_parameter("0.bias").requires_grad
    assert torch.equal(graph(x), loaded(x))


def test_runs_in_a_process_without_the_class(tmp_path: Path) -> None:
    inputs = CASES["attention"][1](3)
    graph = trace(Attention(), inputs)
    save_program(graph, tmp_path)
    save_file({"x": inputs[0], "shift": inputs[1]}, tmp_path / "in.safetensors")
    script = (
        "import sys; from pathlib import Path; from safetensors.torch import load_file, save_file\n"
        "from penjing.export.program import load_program\n"
        "folder = Path(sys.argv[1])\n"
        "x = {k: v.clone() for k, v in load_file(folder / 'in.safetensors').items()}\n"
        "out = load_program(folder)(x['x'], x['shift']); out['out'].sum().backward()\n"
        "save_file({k: v.detach() for k, v in out.items()}, folder / 'out.safetensors')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    expected = graph(*inputs)
    for name, value in load_file(tmp_path / "out.safetensors").items():
        assert torch.equal(value, expected[name])


FORBIDDEN = [
    "os.system",
    "torch.load",
    "operator.methodcaller",
    "aten.from_file.default",
    "aten.save.default",
    "aten.set_.source_Storage",
    "aten.append.t",
    "aten.__class__.__init__",
    "builtins.eval",
    "prim.rpc_async.default",
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_crafted_program_cannot_call(name: str, tmp_path: Path) -> None:
    save_program(trace(cnn(), torch.randn(2, 3, 8, 8)), tmp_path)
    data = json.loads((tmp_path / "program.json").read_text())
    node = next(node for node in data["graph"]["nodes"] if node["op"] == "call_function")
    node["target"] = name
    (tmp_path / "program.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="may call"):
        load_program(tmp_path)


BREAK_OUT = '0"); __import__("os").system("touch /tmp/never") #'


@pytest.mark.parametrize("edit", ["name", "get_attr", "placeholder", "kwarg", "argument", "tensor"])
def test_a_crafted_name_cannot_become_code(edit: str, tmp_path: Path) -> None:
    save_program(trace(cnn(), torch.randn(2, 3, 8, 8)), tmp_path)
    data = json.loads((tmp_path / "program.json").read_text())
    nodes = data["graph"]["nodes"]
    first = {
        op: next(node for node in nodes if node["op"] == op)
        for op in ("get_attr", "placeholder", "call_function")
    }
    match edit:
        case "name":
            first["call_function"]["name"] = BREAK_OUT
        case "get_attr" | "placeholder":
            first[edit]["target"] = BREAK_OUT
        case "kwarg":
            first["call_function"]["kwargs"] = {BREAK_OUT: 1}
        case "argument":
            data["graph"]["arguments"] = [BREAK_OUT]
        case "tensor":
            data["tensors"][0]["name"] = BREAK_OUT
    (tmp_path / "program.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="may hold"):
        load_program(tmp_path)


@pytest.mark.parametrize(
    "damage", ["missing", "json", "deep", "version", "format", "shape", "truncated", "node"]
)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    save_program(trace(cnn(), torch.randn(2, 3, 8, 8)), tmp_path)
    path = tmp_path / "program.json"
    data = json.loads(path.read_text())
    match damage:
        case "version":
            data["version"] = 99
        case "format":
            data["format"] = "other"
        case "shape":
            data["tensors"][0]["shape"] = [1, 2]
        case "node":
            del data["graph"]["nodes"][3]
    path.write_text({"json": "{", "deep": "[" * 100_000}.get(damage, json.dumps(data)))
    if damage == "missing":
        path.unlink()
    if damage == "truncated":
        state = tmp_path / "model.safetensors"
        state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(ArtifactError):
        load_program(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": ["batch", 3, 10**6, 10**6]}, "larger than the memory"),
        ({"shape": ["batch", -3, 8, 8]}, "negative"),
        ({"shape": ["batch", "x", 8, 8]}, "TypeError"),
        ({"dtype": "nn"}, "no dtype"),
    ],
)
def test_inputs_that_cannot_be_are_damage(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    save_program(trace(cnn(), torch.randn(2, 3, 8, 8)), tmp_path)
    data = read_program(tmp_path)
    next(node for node in data["graph"]["nodes"] if node["op"] == "placeholder")["example"] |= change
    with pytest.raises(ArtifactError, match=rf"program\.json is damaged .*{says}"):
        example_inputs_of(data)


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(ExportError, match="plain form"):
        encode_value(object(), lambda value: ExportError(f"{value} has no plain form", remedy="none"))


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists, tuples and dicts of ``leaves``."""
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )


plain = nested(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(
        [torch.float32, torch.int64, torch.strided, torch.channels_last, torch.device("cpu"), ...]
    )
    | st.complex_numbers(allow_nan=False)
)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_arguments_survive_json(value: Any) -> None:
    data = json.loads(json.dumps(encode_value(value, AssertionError), allow_nan=False))  # type: ignore[arg-type]
    back = decode_value(data, {})
    assert back == value
    assert repr(back) == repr(value)


trees = nested(st.just(0))


@settings(max_examples=100, deadline=None)
@given(trees)
def test_signatures_survive_json(tree: Any) -> None:
    spec = pytree.tree_structure(tree)
    assert decode_tree(json.loads(json.dumps(encode_tree(spec)))) == spec


def test_operator_names_are_inverse() -> None:
    for name in ("aten.conv2d.default", "aten.div.Tensor_mode", "operator.getitem", "torch.sym_float"):
        assert target_name(target_named(name, ArtifactError)) == name
