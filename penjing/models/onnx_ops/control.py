"""Branches: chosen while reading where the condition is a constant or a size, else by the data."""

from __future__ import annotations

import torch

from penjing.models.onnx_ops.node import SYMBOLIC, Node, Value, op


@op("If")
def _if(node: Node) -> list[Value]:
    known = node.host(0)
    if known is not None:
        item = known.reshape(-1)[0]
        chosen = bool(item) if isinstance(item, SYMBOLIC) else bool(item.item())
    elif torch.compiler.is_exporting():
        raise node.error("which branch is taken depends on the values of the model's inputs")
    else:
        chosen = bool(node.x(0).item())
    assert node.run_body is not None
    return node.run_body(node.attr("then_branch" if chosen else "else_branch"))
