"""ONNX files as trainable modules: equal to the runtime, named as in the file, pruned and exported again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import penjing as pj
from penjing.errors import ArtifactError
from penjing.export import export_onnx
from penjing.export.onnx import OnnxRunner
from penjing.models.onnx_door import OnnxModel
from penjing.models.spec import load_model
from penjing.prune import masked_equivalence

Check = Callable[..., None]
RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def written(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: list[str],
    opset: int = 17,
) -> Path:
    """A file with these nodes, checked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return path


def relative(model: nn.Module, path: Path, *arrays: np.ndarray) -> float:
    """Largest difference between the module and the runtime, over the largest output."""
    runner = OnnxRunner(path, threads=1)
    wanted = runner.run({spec.name: a for spec, a in zip(runner.inputs, arrays, strict=True)})
    with torch.no_grad():
        out = model(*[torch.tensor(a) for a in arrays])
    found = out if isinstance(out, tuple) else (out,)
    return max(
        float(np.abs(a - b.numpy()).max() / np.abs(a).max()) for a, b in zip(wanted, found, strict=True)
    )


class Attention(nn.Module):
    """Heads made by reshaping to sizes that torch.export computes from a free batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        n, t, _ = x_NTC.shape
        q, k, v = self.qkv(self.norm(x_NTC)).reshape(n, t, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / 6**0.5, -1) @ v
        x_NTC = x_NTC + self.out(mixed.transpose(1, 2).reshape(n, t, 24))
        logits: torch.Tensor = self.head(x_NTC.mean(1))
        return logits


def convolutions() -> nn.Module:
    """Batch norm, pooling, flattening, dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(12 * 64, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 10),
    )


@pytest.fixture(scope="module", params=["convolutions", "attention"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    model, x = (
        (convolutions(), torch.randn(2, 3, 16, 16))
        if request.param == "convolutions"
        else (Attention(), torch.randn(2, 7, 24))
    )
    return export_onnx(model, tmp_path_factory.mktemp("given") / "given.onnx", x), x


def test_a_file_is_read_pruned_trained_and_exported_again(exported: tuple[Path, Any], tmp_path: Path) -> None:
    path, x = exported
    given = OnnxModel(path).eval()
    three = torch.randn(3, *x.shape[1:])
    assert relative(given, path, three.numpy()) < 1e-5

    made = pj.prune(given, x, ratio=0.5)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (given, made.model))
    assert after < 0.6 * before
    assert set(dict(made.model.named_parameters())) == set(dict(given.named_parameters()))

    student = made.model.train()
    loss = nn.functional.mse_loss(student(three), given(three).detach())
    torch.autograd.backward(loss)
    assert all(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    optimizer.step()
    assert nn.functional.mse_loss(student(three), given(three)).item() < loss.item()

    again = pj.export(student.eval(), tmp_path / "out", ("onnx",), example_inputs=x)["onnx"]
    assert again.verification.ok
    assert [row.batch for row in again.verification.rows] == [1, 3, 8]
    assert relative(OnnxModel(again.path).eval(), again.path, three.numpy()) < 1e-5


@pytest.mark.parametrize("names", [("pixel_values", "logits"), ("relu", "conv2d"), ("in:0", "val_0")])
def test_inputs_and_outputs_keep_the_names_of_the_file(names: tuple[str, str], tmp_path: Path) -> None:
    given, result = names
    path = written(
        tmp_path / "m.onnx",
        [
            helper.make_node("Conv", [given, "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "v"], [result]),
        ],
        {"w": f32(6, 3, 3, 3), "v": f32(4, 6, 1, 1)},
        inputs={given: (TensorProto.FLOAT, ["N", 3, 8, 8])},
        outputs=[result],
    )
    loaded = load_model(str(path))
    small = pj.prune(loaded.model, loaded.example_inputs, 0.5).model
    made = pj.export(small, tmp_path / "out", ("onnx",), example_inputs=loaded.example_inputs)["onnx"]
    file = OnnxRunner(made.path)
    assert (tuple(spec.name for spec in file.inputs), file.outputs) == ((given,), (result,))


def test_weights_keep_the_names_of_the_file(exported: tuple[Path, Any]) -> None:
    path, _ = exported
    initializers = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    named = {name: p for name, p in OnnxModel(path).named_parameters() if "." in name}
    assert named
    for name, parameter in named.items():
        np.testing.assert_array_equal(parameter.detach().numpy(), initializers[name])


def test_the_spec_reads_it(exported: tuple[Path, Any]) -> None:
    path, x = exported
    loaded = load_model(str(path))
    assert loaded.kind == "onnx"
    assert loaded.example_inputs.shape == x.shape
    assert loaded.info["outputs"] == ["output"]
    copied = load_model(str(path)).model
    torch.testing.assert_close(loaded.model(x), copied(x), rtol=0, atol=0)


def test_batch_norm_trains_as_torch_does(tmp_path: Path) -> None:
    weights = {"scale": f32(4), "bias": f32(4), "mean": f32(4), "var": np.abs(f32(4)) + 1}
    node = helper.make_node(
        "BatchNormalization", ["x", *weights], ["y"], epsilon=1e-3, momentum=0.8, name="norm"
    )
    shape = ["n", 4, 3, 3]
    path = written(
        tmp_path / "m.onnx", [node], weights, inputs={"x": (TensorProto.FLOAT, shape)}, outputs=["y"]
    )
    ours = OnnxModel(path).train()
    theirs = nn.BatchNorm2d(4, eps=1e-3, momentum=0.2).train()
    theirs.load_state_dict(
        {
            name: torch.tensor(weights[w])
            for name, w in (
                ("weight", "scale"),
                ("bias", "bias"),
                ("running_mean", "mean"),
                ("running_var", "var"),
            )
        },
        strict=False,
    )
    x = torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.get_buffer("var"), theirs.running_var)
    assert {name for name, _ in ours.named_parameters()} == {"scale", "bias"}
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_weights_in_constant_nodes_train_too(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(f32(6, 3)))
    half = helper.make_node("Constant", [], ["half"], value_float=0.5)
    nodes = [
        constant,
        half,
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Mul", ["m", "half"], ["y"]),
    ]
    path = written(tmp_path / "m.onnx", nodes, {}, inputs={"x": (TensorProto.FLOAT, ["n", 6])}, outputs=["y"])
    model = OnnxModel(path)
    assert [name for name, _ in model.named_parameters()] == ["w"]
    assert relative(model, path, f32(4, 6)) < 1e-6


def _two_branches(folder: Path) -> Path:
    """x · w in one branch, x · w + 1 in the other; both branches use the same inner names."""

    def branch(plus: float) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "c"], ["out"])],
            f"plus_{plus}",
            [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
            [numpy_helper.from_array(np.array([plus, 0, 0], np.float32), "c")],
        )

    nodes = [
        helper.make_node("Equal", ["rate", "wide"], ["is_wide"]),
        helper.make_node(
            "If", ["is_wide"], ["y"], then_branch=branch(0.0), else_branch=branch(1.0), name="branch"
        ),
    ]
    weights = {"w": f32(6, 3), "wide": np.array(16000, np.int64)}
    inputs = {"x": (TensorProto.FLOAT, ["n", 6]), "rate": (TensorProto.INT64, list[Any]())}
    return written(folder / "if.onnx", nodes, weights, inputs=inputs, outputs=["y"])


def test_a_branch_is_taken_by_the_data_or_by_a_fixed_input(tmp_path: Path) -> None:
    path = _two_branches(tmp_path)
    x = f32(2, 6)
    for rate in (8000, 16000):
        array = np.array(rate, np.int64)
        assert relative(OnnxModel(path), path, x, array) < 1e-6
        fixed = load_model(str(path), rate=rate)
        expected = OnnxModel(path)(torch.tensor(x), torch.tensor(array))
        torch.testing.assert_close(fixed.model(torch.tensor(x)), expected)
        assert pj.inspect(fixed.model, fixed.example_inputs).num_params == 18 + 3
    with pytest.raises(pj.PenjingError, match="depends on the values"):
        pj.inspect(OnnxModel(path), (torch.tensor(x), torch.tensor(8000)))


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (
            [helper.make_node("Bernoulli", ["x"], ["y"], name="odd")],
            "translation for ONNX Bernoulli",
        ),
        (
            [helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft", name="odd")],
            "FusedMatMul",
        ),
    ],
)
def test_an_op_without_a_rule_is_named_with_its_node(
    nodes: list[onnx.NodeProto], says: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "m.onnx", nodes, {}, inputs={"x": (TensorProto.FLOAT, [2, 2])}, outputs=["y"])
    with pytest.raises(ArtifactError, match=says) as caught:
        OnnxModel(path)
    assert caught.value.layer == "odd"


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, {}, "does not exist"),
        (b"no protobuf", {}, "cannot be read"),
        (b"", {}, "no ONNX graph"),
        ("net", {"rate": 3}, "no input 'rate'"),
        ("net", {"y.shape": [1]}, "no input"),
    ],
)
def test_mistakes_are_told(content: Any, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if content == "net":
        path = written(
            path,
            [helper.make_node("Relu", ["x"], ["z"])],
            {},
            inputs={"x": (TensorProto.FLOAT, [2])},
            outputs=["z"],
        )
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=says):
        load_model(str(path), **options)


@pytest.mark.parametrize(("outputs", "opset", "says"), [([], 17, "no outputs"), (["z"], 999, "of opset 999")])
def test_what_no_runtime_takes_is_refused(outputs: list[str], opset: int, says: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["z"])]
    inputs = {"x": (TensorProto.FLOAT, [2])}
    path = written(tmp_path / "net.onnx", nodes, {}, inputs=inputs, outputs=outputs, opset=opset)
    with pytest.raises(ArtifactError, match=says):
        load_model(str(path))


def test_a_weight_of_another_size_than_declared_is_named(tmp_path: Path) -> None:
    path = written(
        tmp_path / "net.onnx",
        [helper.make_node("Add", ["x", "w"], ["z"])],
        {"w": np.ones(2, np.float32)},
        inputs={"x": (TensorProto.FLOAT, [2])},
        outputs=["z"],
    )
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 10**12
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="weight 'w' is damaged"):
        load_model(str(path))


def test_names_that_no_module_can_have_are_changed(tmp_path: Path) -> None:
    names = ["forward", "a", "a.b", "x/y:0", "x_y_0", "training.eval", "_body"]
    nodes = []
    last = "x"
    for i, name in enumerate(names):
        nodes.append(helper.make_node("Add", [last, name], [f"s{i}"]))
        last = f"s{i}"
    weights = {name: f32(3) for name in names}
    path = written(
        tmp_path / "m.onnx", nodes, weights, inputs={"x": (TensorProto.FLOAT, ["n", 3])}, outputs=[last]
    )
    model = OnnxModel(path)
    assert len(list(model.parameters())) == len(names)
    assert relative(model, path, f32(2, 3)) < 1e-6


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv": lambda c, d: nn.Conv2d(c, d, 3, padding=1),
    "strided": lambda c, d: nn.Conv2d(c, d, 3, 2, 1, bias=False),
    "depthwise": lambda c, d: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, d, 1)),
    "grouped": lambda c, d: nn.Conv2d(c, d, 3, padding=1, groups=2),
    "transposed": lambda c, d: nn.ConvTranspose2d(c, d, 2, 2),
    "norm": lambda c, d: nn.Sequential(nn.Conv2d(c, d, 1), nn.GroupNorm(2, d), nn.SiLU()),
    "shuffle": lambda c, d: nn.Sequential(nn.Conv2d(c, 4 * d, 1), nn.PixelShuffle(2), nn.MaxPool2d(3, 2, 1)),
    "prelu": lambda c, d: nn.Sequential(nn.Conv2d(c, d, 1), nn.PReLU(d), nn.Hardswish()),
    "up": lambda c, d: nn.Sequential(
        nn.Conv2d(c, d, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(3, 2, 1)
    ),
}


@settings(max_examples=4)
@given(
    kinds=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4),
    opset=st.sampled_from([18, 20, 23]),
    seed=st.integers(0, 99),
)
def test_random_networks_survive_the_round_trip(
    kinds: list[str], opset: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    width = 4
    for kind in kinds:
        layers += [LAYERS[kind](width, 2 * width), nn.ReLU()]
        width *= 2
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)).eval()
    x = torch.randn(2, 4, 12, 12)
    path = export_onnx(model, tmp_path_factory.mktemp("net") / "m.onnx", x, opset=opset)
    read = OnnxModel(path).eval()
    with torch.no_grad():
        torch.testing.assert_close(read(torch.cat([x, x])), model(torch.cat([x, x])), rtol=1e-4, atol=1e-5)
    made = pj.prune(read, x, ratio=0.5)
    assert sum(p.numel() for p in made.model.parameters()) < sum(p.numel() for p in read.parameters())
    assert made.model(x).shape == (2, 3)


def test_standardised_weights_train_and_are_pruned(tmp_path: Path) -> None:
    """Their statistics come from a weight, so gradients go through a batch norm's mean and variance."""
    nodes = [
        helper.make_node("Reshape", ["w", "flat"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[0, 2], keepdims=0),
        helper.make_node("ReduceMean", ["rows"], ["centre"], axes=[2]),
        helper.make_node("Sub", ["rows", "centre"], ["apart"]),
        helper.make_node("Mul", ["apart", "apart"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["var"], axes=[0, 2], keepdims=0),
        helper.make_node("BatchNormalization", ["rows", "one", "zero", "mean", "var"], ["even"]),
        helper.make_node("Reshape", ["even", "shape"], ["filters"]),
        helper.make_node("Conv", ["x", "filters"], ["image"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["image"], ["on"]),
        helper.make_node("Conv", ["on", "v"], ["y"], kernel_shape=[1, 1]),
    ]
    filters = f32(8, 3, 3, 3)
    weights = {
        "w": filters,
        "one": np.ones(8, np.float32),
        "zero": np.zeros(8, np.float32),
        "v": f32(4, 8, 1, 1),
        "flat": np.array([1, 8, 27]),
        "shape": np.array([8, 3, 3, 3]),
    }
    inputs = {"x": (TensorProto.FLOAT, ["n", 3, 5, 5])}
    path = written(tmp_path / "m.onnx", nodes, weights, inputs=inputs, outputs=["y"])
    read, x = OnnxModel(path), torch.randn(2, 3, 5, 5)
    assert relative(read, path, x.numpy()) < 1e-5

    w = torch.tensor(filters, requires_grad=True)
    rows = nn.functional.batch_norm(w.reshape(1, 8, 27), None, None, training=True)
    hidden = nn.functional.conv2d(x, rows.reshape_as(w)).relu()
    nn.functional.conv2d(hidden, torch.from_numpy(weights["v"])).sum().backward()  # type: ignore[no-untyped-call]
    read.train()(x).sum().backward()
    (found,) = (p.grad for p in read.parameters() if p.shape == w.shape)
    assert found is not None
    torch.testing.assert_close(found, w.grad, rtol=1e-3, atol=1e-4)
    made = pj.prune(read.eval(), x, ratio=0.5)
    assert made.after["params"] < 0.7 * made.before["params"]


def test_a_flatten_by_strides_is_pruned_through(tmp_path: Path) -> None:
    """``as_strided`` as exporters write it: positions counted from ranges, then gathered."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["image"], kernel_shape=[1, 1]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["n"]),
        helper.make_node("Range", ["zero", "n", "one"], ["samples"]),
        helper.make_node("Mul", ["samples", "stride"], ["starts"]),
        helper.make_node("Unsqueeze", ["starts", "last"], ["rows"]),
        helper.make_node("Add", ["rows", "steps"], ["at"]),
        helper.make_node("Reshape", ["image", "flat"], ["all"]),
        helper.make_node("Gather", ["all", "at"], ["row"]),
        helper.make_node("MatMul", ["row", "v"], ["y"]),
    ]
    weights = {
        "w": f32(8, 3, 1, 1),
        "v": f32(32, 4),
        "zero": np.array(0),
        "one": np.array(1),
        "stride": np.array(32),
        "last": np.array([1]),
        "steps": np.arange(32),
        "flat": np.array([-1]),
    }
    inputs = {"x": (TensorProto.FLOAT, ["n", 3, 2, 2])}
    path = written(tmp_path / "m.onnx", nodes, weights, inputs=inputs, outputs=["y"])
    read, x = OnnxModel(path).eval(), torch.randn(2, 3, 2, 2)
    assert relative(read, path, x.numpy()) < 1e-5
    made = pj.prune(read, x, ratio=0.5)
    assert made.model.get_parameter("w").shape[0] == 4
    assert masked_equivalence(read, made, x) <= 1e-4
    assert made.model(torch.randn(5, 3, 2, 2)).shape == (5, 4)


def test_floats_are_not_taken_for_raw_pixels(tmp_path: Path) -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.conv(x.float() / 255).mean((2, 3))
            return found

    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    loaded = load_model(export_onnx(Pixels().eval(), tmp_path / "raw.onnx", pixels))
    assert int(loaded.example_inputs.max()) > 100
    wanted = Pixels()
    wanted.load_state_dict(loaded.model.state_dict())
    assert torch.allclose(loaded.model(pixels), wanted(pixels), atol=1e-6)
    pruned = pj.prune(loaded.model, pixels, 0.5).model
    for network in (loaded.model, pruned):
        with pytest.raises(ArtifactError, match="given as float32, and the ONNX file takes uint8"):
            network(torch.rand(2, 3, 8, 8))
