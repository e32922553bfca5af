"""Shared by the export tests: a small network, and one-op ONNX models."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow (pip install penjing[tf])"
)
"""Looked up, not imported: `penjing.export.coexist` says why the order of imports matters."""


def vgg_like() -> nn.Module:
    """Convolutions, batch norm, ReLU, max-pooling, wide linears, dropout: with statistics that are not
    trivial."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(12 * 16, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 10),
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model


def one_op(
    op_type: str,
    inputs: dict[str, np.ndarray],
    *,
    constants: dict[str, np.ndarray] | None = None,
    order: Sequence[str] | None = None,
    num_outputs: int = 1,
    opset: int = 20,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; dimension 0 of every float input of rank 2 and up is free."""
    constants = constants or {}
    names = list(order) if order is not None else [*inputs, *constants]
    outputs = [f"y{i}" for i in range(num_outputs)]
    node = helper.make_node(op_type, names, outputs, name=f"the_{op_type}", **attributes)
    infos = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(array.dtype),
            ["n", *array.shape[1:]] if array.ndim > 1 and array.dtype == np.float32 else list(array.shape),
        )
        for name, array in inputs.items()
    ]
    # Output types are found by inference; only names are declared.
    graph = helper.make_graph(
        [node],
        "one",
        infos,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(inferred)
    return inferred
