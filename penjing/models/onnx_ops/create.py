"""Tensors made from nothing but a shape or a constant."""

from __future__ import annotations

import numpy as np
import torch

from penjing.models.onnx_ops.node import SYMBOLIC, Node, Value, array_tensor, dtype_of, op

_CONSTANTS: dict[str, type] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@op("Constant")
def _constant(node: Node) -> Value:
    if "value" in node.attributes:
        return np.asarray(node.attributes["value"])
    for name, kind in _CONSTANTS.items():
        if name in node.attributes:
            return np.asarray(node.attributes[name], kind)
    raise node.error("its value is neither numbers nor a dense tensor")


@op("ConstantOfShape")
def _constant_of_shape(node: Node) -> Value:
    value = array_tensor(node.attr("value", np.zeros(1, np.float32)).reshape(-1)[:1])
    return torch.full(
        [node.integer(n) for n in node.static(0, "shape")],
        value.item(),
        dtype=value.dtype,
        device=node.device,
    )


@op("Range")
def _range(node: Node) -> Value:
    ends = [node.static(i, "range").reshape(-1)[0] for i in range(3)]
    plain = [end if isinstance(end, SYMBOLIC) else end.item() for end in ends]
    kind = next((array_tensor(np.asarray(e)).dtype for e in ends if not isinstance(e, SYMBOLIC)), torch.int64)
    return torch.arange(*plain, dtype=kind, device=node.device)


@op("EyeLike")
def _eye_like(node: Node) -> Value:
    x, k = node.x(), int(node.attr("k", 0))
    kind = dtype_of(node, int(node.attr("dtype"))) if "dtype" in node.attributes else x.dtype
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return (torch.arange(x.shape[1], device=x.device) - rows == k).to(kind)
