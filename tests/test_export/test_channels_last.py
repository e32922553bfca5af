"""Networks written channels last: their files convolve as fast, and in as few steps, as any other's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.export.onnx import export_onnx
from penjing.quantize import quantize
from penjing.quantize.prepare import load_onnx, prepare
from penjing.quantize.runtime import Session

SIDE = 9
STEPS = ("norm", "relu6", "gate", "pad", "residual", "concat", "shared", "reversed", "turned", "scaled")


class Norm(nn.Module):
    """A batch norm as Keras writes it, over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean, self.beta = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.factor = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.factor + self.beta


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=kernel == 1)
        self.norm = Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


class ChannelsLast(nn.Module):
    """A convolution and its norm, then the steps asked for; ends in classes or in a map."""

    def __init__(self, steps: Sequence[str], *, classes: bool = True) -> None:
        super().__init__()
        width, layers = 6, [Block(3, 6)]
        for step in steps:
            width = 2 * width if step == "concat" else width
            layers.append(Block(width, width, 1 if step == "gate" else 3))
        self.steps, self.layers, self.classes = tuple(steps), nn.ModuleList(layers), classes
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for step, layer in zip(self.steps, list(self.layers)[1:], strict=True):
            assert isinstance(layer, Block)
            if step == "gate":
                x = x * layer(x.mean((1, 2), keepdim=True)).sigmoid()
                continue
            if step == "residual":
                x = x + layer(F.relu6(x))
                continue
            if step == "norm":
                x = x - layer.norm.mean
            elif step == "relu6":
                x = F.relu6(x)
            elif step == "pad":
                x = F.pad(x, (0, 0, 1, 0, 0, 2))
            elif step == "concat":
                x = torch.cat([x, x.tanh()], -1)
            elif step == "shared":
                x = layer(x) + x.relu()
            elif step == "reversed":
                x = 1 - x / layer.norm.factor
            elif step == "turned":
                x = x.transpose(1, 2)
            else:
                x = 2 * x
            x = layer(x)
        if self.classes:
            x = self.head(x.mean((1, 2)))
        return x


def ops_of(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@settings(max_examples=12)
@given(st.lists(st.sampled_from(STEPS), max_size=4), st.booleans(), st.integers(0, 99))
def test_files_compute_what_the_network_does(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], classes: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model, x = ChannelsLast(steps, classes=classes).eval(), torch.randn(2, SIDE, SIDE, 3)
    path = export_onnx(model, tmp_path_factory.mktemp("last") / "m.onnx", x)
    (found,) = Session(path).run({"input": x.numpy()}).values()
    wanted = model(x).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()))


def test_norms_and_transposes_are_gone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = ChannelsLast(("relu6", "residual", "pad")).eval(), torch.randn(2, SIDE, SIDE, 3)
    path = export_onnx(model, tmp_path / "m.onnx", x)
    found, graph = ops_of(path), onnx.load(path).graph
    assert {held.name for held in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert found["Transpose"] == 1, found  # of the input
    assert found["Add"] == 1, found  # the residual's
    assert not found["Mul"] + found["Sub"], found


def test_all_of_it_runs_in_int8(tmp_path: Path) -> None:
    """Nothing stands between a convolution and its activation, which is rounded once."""
    torch.manual_seed(0)
    model = ChannelsLast(("relu6", "scaled", "relu6")).eval()
    data = [torch.rand(16, SIDE, SIDE, 3) for _ in range(2)]
    done = quantize(model, data, out=tmp_path / "m.int8.onnx")
    assert not done.float_ops, done.float_ops
    found = ops_of(done.path)
    assert not found["Clip"] + found["Mul"] + found["Sub"], found
    assert found["QuantizeLinear"] <= found["Conv"] + 5, found


@pytest.mark.parametrize(("norms", "left"), [(True, {"Add": 1}), (False, {"Add": 1, "Mul": 1})])
def test_a_norm_behind_a_product_is_one_addition(tmp_path: Path, norms: bool, left: dict[str, int]) -> None:
    """A layer scale stays: see `penjing.export.onnx_affine`."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(6, 5), Norm(5)

        def forward(self, x: Tensor) -> Tensor:
            out = self.dense(x)
            return torch.tanh(self.norm(out) if norms else out * self.norm.factor)

    torch.manual_seed(0)
    model, x = Sequence().eval(), torch.randn(2, 7, 6)
    path = export_onnx(model, tmp_path / "m.onnx", x)
    assert ops_of(path) == {"MatMul": 1, "Tanh": 1, **left}
    (found,) = Session(path).run({"input": x.numpy()}).values()
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-6)


def test_a_weight_that_others_read_is_left_to_them(tmp_path: Path) -> None:
    """Two convolutions with one weight, of which one is scaled; a factor of the batch is none of channels."""
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(2, 2, 1, 1)), "k": np.array([2.0, 3.0]), "b": rng.normal(size=(2, 1, 1))}
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in values.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Div", ["y", "b"], ["z"]),
        helper.make_node("Conv", ["x", "w"], ["u"]),
        helper.make_node("Mul", ["u", "k"], ["v"]),  # along the width
        helper.make_node("Sub", ["b", "z"], ["t"]),
        helper.make_node("Add", ["t", "v"], ["out"]),
    ]
    shape: list[str | int | None] = ["n", 2, 2, 2]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        held,
    )
    path = tmp_path / "shared.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    prepared = prepare(load_onnx(path))
    left = Counter(node.op_type for node in prepared.graph)
    assert left == Counter({"Conv": 2, "Mul": 1, "Add": 1}), left
    feed: dict[str, NDArray[Any]] = {"x": rng.normal(size=(3, 2, 2, 2)).astype(np.float32)}
    found, wanted = Session(prepared).run(feed)["out"], Session(path).run(feed)["out"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
