"""Move per-channel factors and shifts into the weights before them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.graph import (
    Names,
    bias_of,
    constant,
    float_attribute,
    name_of,
    only_consumer,
    set_initializer,
    take_place,
    weight_axis,
    weight_of,
)


def fold_batch_norm(graph: ir.Graph) -> int:
    """Fold each BatchNormalization into the Conv or Gemm that alone feeds it; gives the number folded.

    ``y = γ·(Wx + b − μ)/√(σ² + ε) + β`` is again ``W'x + b'`` (Jacob et al. 2018, section 3.2), in float64.
    """
    folded = 0
    for norm in list(graph):
        if norm.op_type != "BatchNormalization" or len([o for o in norm.outputs if o.uses()]) > 1:
            continue
        source = norm.inputs[0]
        producer = None if source is None else source.producer()
        parameters = [constant(value) for value in norm.inputs[1:5]]
        if (
            source is None
            or producer is None
            or producer.op_type not in {"Conv", "Gemm"}
            or any(value is not None and constant(value) is None for value in producer.inputs[1:])
            or only_consumer(source) is not norm
            or any(p is None for p in parameters)
        ):
            continue
        gamma_O, beta_O, mean_O, var_O = (np.asarray(p, np.float64) for p in parameters)
        factor_O = gamma_O / np.sqrt(var_O + float_attribute(norm, "epsilon", 1e-5))
        scale_output(graph, producer, factor_O, beta_O - mean_O * factor_O)
        take_place(graph, norm, source)
        folded += 1
    return folded


def fold_gemm_factors(graph: ir.Graph) -> None:
    """Move Gemm's ``alpha`` and ``beta`` into its constants."""
    for node in graph:
        if node.op_type != "Gemm" or constant(node.inputs[1]) is None:
            continue
        alpha, beta = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
        if alpha != 1.0:
            set_initializer(graph, name_of(_input(node, 1)), weight_of(node) * np.float32(alpha))
        node.attributes.pop("alpha", None)
        if beta != 1.0 and (bias := bias_of(node)) is not None:
            set_initializer(graph, name_of(_input(node, 2)), bias * np.float32(beta))
            node.attributes.pop("beta", None)


def scale_output(
    graph: ir.Graph, node: ir.Node, factor_O: NDArray[np.float64], shift_O: NDArray[np.float64] | None = None
) -> None:
    """Change a Conv's or Gemm's constants so that output channel o becomes ``factor[o]·y[o] + shift[o]``."""
    w = weight_of(node).astype(np.float64)
    shape = [1] * w.ndim
    shape[weight_axis(node)] = -1
    set_initializer(graph, name_of(_input(node, 1)), (w * factor_O.reshape(shape)).astype(np.float32))
    bias_O = bias_of(node)
    if bias_O is None and shift_O is None:
        return
    new_O = (0.0 if bias_O is None else bias_O.astype(np.float64)) * factor_O
    set_bias(graph, node, new_O if shift_O is None else new_O + shift_O)


def set_bias(graph: ir.Graph, node: ir.Node, bias_O: NDArray[np.floating]) -> None:
    """Give a Conv or Gemm this bias, under its old name or one made from its weight's."""
    held = node.inputs[2] if len(node.inputs) > 2 else None
    array = np.asarray(bias_O, np.float32)
    if held is not None:
        set_initializer(graph, name_of(held), array)
        return
    weight = name_of(_input(node, 1))
    stem = weight.removesuffix(".weight") if weight.endswith(".weight") else weight
    value = set_initializer(graph, Names(graph).fresh(f"{stem}.bias"), array)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)


def _input(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    assert value is not None
    return value
