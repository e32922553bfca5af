"""SmoothQuant where no constant can take the factor: the layer's input is multiplied, its weight divided.

Where a tensor is read by more than int8 layers (the residual stream of a post-norm transformer) or made by
an op that a factor does not pass through (GELU), `penjing.quantize.equalize` has no place for the factors of
Xiao et al. 2023. One multiplication per channel before the layer costs little beside a matrix product, so it
is written out where it is predicted to gain enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.graph import Names, name_of, set_initializer, weight_axis, weight_of
from penjing.quantize.place import Placement

GAIN = 0.7
"""A multiplication is worth it where predicted noise falls below this share of what it was (by 1.5 dB)."""

_LEAST_OUTPUTS = 64


def smoothable(graph: ir.Graph, placement: Placement) -> dict[str, list[ir.Node]]:
    """Inputs of int8 matrix products that are rounded for them alone, and who reads each as 8-bit."""
    found: dict[str, list[ir.Node]] = {}
    for node in graph:
        source = node.inputs[0] if node.inputs else None
        if source is None or node.op_type not in {"Gemm", "MatMul"}:
            continue
        name = name_of(source)
        own = placement.roots.get(name) == name and name not in placement.emitted
        if own and name_of(node.outputs[0]) in placement.layers and source.producer() is not None:
            found.setdefault(name, []).append(node)
    return found


def worthwhile(readers: Sequence[ir.Node], noise: float, before: float) -> bool:
    """Whether a multiplication pays: enough outputs to hide it behind, and enough noise removed.

    Args:
        readers: The layers.
        noise: Predicted output noise with the factors.
        before: The same without.
    """
    outputs = sum(weight_of(reader).shape[weight_axis(reader)] for reader in readers)
    return outputs >= _LEAST_OUTPUTS and noise < GAIN * before


def insert(graph: ir.Graph, readers: list[ir.Node], factor_C: NDArray[np.float64]) -> None:
    """Divide what the readers see by ``factor``, channel by channel (the last axis)."""
    source = readers[0].inputs[0]
    assert source is not None
    names = Names(graph)
    name = names.fresh(f"{name_of(source)}.smooth")
    inverse = set_initializer(graph, name, (1.0 / factor_C).astype(np.float32))
    node = ir.node("Mul", [source, inverse], name=name)
    out = node.outputs[0]
    out.name, out.shape, out.type = names.fresh(f"{name}d"), source.shape, source.type
    producer = source.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    for reader in readers:
        reader.replace_input_with(0, out)
