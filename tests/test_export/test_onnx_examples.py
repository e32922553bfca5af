"""Example inputs made from an ONNX file alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from penjing.export import export
from penjing.export.onnx_examples import example_feeds, index_limits
from penjing.models.onnx_door import load_onnx


def _model() -> onnx.ModelProto:
    """Tables of 5 and 3 rows looked up by one input (once through a cast), a mask, a scalar, an image."""
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, ["b", 7]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["b", 7]),
        helper.make_tensor_value_info("length", TensorProto.INT64, []),
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"]),
    ]
    tables = [
        numpy_helper.from_array(np.random.default_rng(i).normal(size=(n, 4)).astype(np.float32), f"table{n}")
        for i, n in enumerate((5, 3))
    ]
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table5", "ids"], ["a"]),
        helper.make_node("Gather", ["table3", "wide"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["sum"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["m"], ["count"], keepdims=0),
        helper.make_node("Cast", ["length"], ["l"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["count", "l"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["shift"]),
        helper.make_node("Add", ["sum", "shift"], ["out"]),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", 7, 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tables)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_integers_vary_and_stay_within_every_table_they_index() -> None:
    model = _model()
    assert index_limits(model) == {"ids": 3}
    feeds = example_feeds(model, {"ids": [8, 7]})
    assert feeds["ids"].dtype == np.int32
    assert set(np.unique(feeds["ids"])) == {0, 1, 2}
    assert set(np.unique(feeds["mask"])) == {0, 1}
    assert feeds["length"] == 1


def test_free_sizes_are_those_of_images_and_sequences() -> None:
    feeds = example_feeds(_model())
    assert feeds["image"].shape == (2, 3, 224, 224)
    assert feeds["ids"].shape == (2, 7)
    again = example_feeds(_model())
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_a_file_with_indices_is_read_and_verified_without_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(), path)
    examples = load_onnx(str(path), {}).example_inputs
    assert {name: value.dtype for name, value in examples.items()} == {
        "ids": torch.int32,
        "mask": torch.int64,
        "length": torch.int64,
        "image": torch.float32,
    }
    made = export(path, tmp_path / "out", ["onnx"])
    assert made.ok
