"""Formats of floating-point numbers: runtimes have all their kernels for float32 alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import onnx
import torch
from torch import Tensor

_IN_ONNX = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


def floats_of(params: Iterable[Tensor]) -> frozenset[torch.dtype]:
    """The floating-point formats of tensors."""
    return frozenset(p.dtype for p in params if p.is_floating_point())


def floats_of_graph(graph: onnx.GraphProto) -> frozenset[torch.dtype]:
    """Those of an ONNX graph's weights; lone numbers are none."""
    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute)
    kinds = {tensor.data_type for tensor in (*graph.initializer, *constants) if tensor.dims}
    return frozenset(dtype for kind, dtype in _IN_ONNX.items() if kind in kinds)


def other_floats(floats: Iterable[torch.dtype]) -> str:
    """Those other than float32, such as ``"bfloat16"``; "" for none."""
    return ", ".join(sorted(str(kind).removeprefix("torch.") for kind in {*floats} - {torch.float32}))


@contextmanager
def autocast_off() -> Iterator[set[str]]:
    """Autocast that a forward has inside changes nothing; gives the formats it was to compute in."""
    found: set[str] = set()
    enter = torch.autocast.__enter__

    def entered(block: torch.autocast) -> Any:
        was = block._enabled
        if was:
            found.add(str(block.fast_dtype).removeprefix("torch."))
        block._enabled = False
        try:
            return enter(block)  # type: ignore[no-untyped-call]
        finally:
            block._enabled = was

    with patch.object(torch.autocast, "__enter__", entered):
        yield found
