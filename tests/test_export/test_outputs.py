"""Formats that keep outputs by name still give them in the model's order."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import needs_tensorflow
from onnx import TensorProto, helper
from torch import nn

import penjing.export as pe
from penjing.errors import ExportError
from penjing.export.inputs import output_names
from penjing.export.saved_model import trace_onnx
from penjing.measure import accuracy

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Many(nn.Module):
    """Twelve outputs of one shape: any two exchanged are a wrong answer that no shape shows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x * self.scale + float(i) for i in range(12)]


class Named(Many):
    """Outputs whose names are not in alphabetical order."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"z": x * self.scale, "a": x + self.scale, "m": x - self.scale}


@pytest.mark.tf
@needs_tensorflow
@pytest.mark.parametrize("model", [Many(), Named()], ids=["list", "dict"])
def test_outputs_keep_their_order_in_every_format(model: nn.Module, tmp_path: Path) -> None:
    made = pe.export(model, tmp_path, ["onnx", "saved_model", "litert"], example_inputs=X, batch_sizes=(2,))
    assert all(file.verification.max_abs < 1e-5 for file in made.files)
    expected = torch.utils._pytree.tree_leaves(model(X))
    found = pe.open_file(made["saved_model"].path).run({"input": X.numpy()})
    for ours, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, wanted.detach().numpy(), rtol=1e-6)


class Two(nn.Module):
    """Neither its inputs nor its outputs are in alphabetical order."""

    def forward(self, second: torch.Tensor, first: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = second - 2 * first
        return {"scores": scores, "hidden": -scores}


@pytest.mark.tf
@needs_tensorflow
def test_inputs_and_outputs_without_names_are_taken_in_the_models_order(tmp_path: Path) -> None:
    """A batch is a tuple and a metric takes the first output: a sorted file would be judged wrongly."""
    pair = (torch.randn(16, 3), torch.randn(16, 3))
    labels = Two()(*pair)["scores"].argmax(1)
    made = pe.export(Two(), tmp_path, ["onnx", "saved_model", "litert"], example_inputs=pair)
    for file in made.files:
        runner = pe.open_file(file.path)
        assert ([spec.name for spec in runner.inputs], runner.outputs) == (
            ["second", "first"],
            ("scores", "hidden"),
        )
        assert accuracy(runner, [(pair, labels)]).value == 1
        assert pe.verify(runner, Two(), pair).ok


def test_names_of_outputs_follow_the_structure() -> None:
    assert output_names(X) == ["output"]
    assert output_names((X, [X, X])) == ["output_0", "output_1", "output_2"]
    assert output_names({"b": X, "a": X}, taken=["a"]) == ["b", "output_a"]


class Sample(OrderedDict[str, torch.Tensor]):
    """Outputs of a library that tells torch how to take them apart, but not by which keys."""


torch.utils._pytree.register_pytree_node(
    Sample,
    lambda held: (list(held.values()), list(held)),
    lambda values, keys: Sample(zip(keys, values, strict=True)),
)


class Library(Many):
    def forward(self, x: torch.Tensor) -> Sample:  # type: ignore[override]
        return Sample(sample=x * self.scale, mean=x + self.scale)


def test_outputs_of_a_class_without_keys_go_by_its_own(tmp_path: Path) -> None:
    file = pe.export(Library(), tmp_path, ["onnx"], example_inputs=X)["onnx"]
    assert pe.open_file(file.path).outputs == ("sample", "mean")
    assert output_names([Sample(a=X, b=X), X]) == ["output_0", "output_1", "output_2"]


@pytest.mark.tf
@needs_tensorflow
def test_names_that_tensorflow_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["a/b"]), helper.make_node("Abs", ["x"], ["a b"])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("a/b", "a b")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="same in TensorFlow"):
        trace_onnx(path)
