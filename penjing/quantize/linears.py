"""Linear layers alone: int8 weights with activations rounded as they come, or weights alone in 8 or 4 bits.

=======================  =======================================================  ============================
mode                     ops written                                              what it is for
=======================  =======================================================  ============================
``dynamic``              DynamicQuantizeLinear, MatMulInteger (standard ONNX)     no activation ranges to find
``weight_only``, 8 bits  DequantizeLinear before the product (standard ONNX)      a file of a quarter the size
``weight_only``, 4 bits  MatMulNBits (``com.microsoft``, ONNX Runtime)            an eighth of the size
=======================  =======================================================  ============================

Of layers with weights, Gemm and MatMul change here; `penjing.quantize.apart` has recurrent ones and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.config import QuantizeConfig
from penjing.quantize.graph import (
    Names,
    bias_of,
    drop_unused_initializers,
    name_of,
    set_initializer,
    take_place,
    weight_axis,
    weight_of,
)
from penjing.quantize.rounding import second_order_blocks
from penjing.quantize.scheme import decibels, weight_top
from penjing.quantize.weights import Guard, choose_scale, round_rows

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class LinearWeight:
    """A linear layer's weight in few bits.

    Attributes:
        q_NK: Levels, outputs by inputs, int8.
        scale_NB: Step of each output and block of inputs, float32.
        block: Inputs per block.
        bits: Bits of a level.
        weight_db: Signal to error of the weight.
    """

    q_NK: NDArray[np.int8]
    scale_NB: NDArray[np.float32]
    block: int
    bits: int
    weight_db: float

    def dequantized(self) -> NDArray[np.float32]:
        """The float32 weight, outputs by inputs."""
        scale_NK = np.repeat(self.scale_NB, self.block, axis=1)[:, : self.q_NK.shape[1]]
        return self.q_NK.astype(np.float32) * scale_NK


def encode_linear(
    node: ir.Node, config: QuantizeConfig, guard: Guard, moments_KK: NDArray[np.float64] | None
) -> LinearWeight:
    """Round a layer's weight.

    Args:
        node: Gemm or MatMul of the prepared graph.
        config: Uses ``mode``, ``weight_bits``, ``block``, ``weights`` and ``rounding``.
        guard: What protects 16-bit sums; weights that are multiplied in float need none.
        moments_KK: Second moments of its input, for second-order rounding.
    """
    w_NK = weight_of(node) if weight_axis(node) == 0 else weight_of(node).T
    return encode_rows(w_NK, config, guard, moments_KK)


def encode_rows(
    w_NK: NDArray[np.float32],
    config: QuantizeConfig,
    guard: Guard,
    moments_KK: NDArray[np.float64] | None = None,
    steps_N: NDArray[np.float32] | None = None,
) -> LinearWeight:
    """Round a matrix of outputs by inputs, as `encode_linear` does a layer's; by the steps that training
    learned, one for each output, where there are such.
    """
    size = w_NK.shape[1]
    blocked = config.mode == "weight_only" and config.weight_bits == 4
    block = config.block if blocked else size
    top = weight_top(config.weight_bits)
    guard = "off" if config.mode == "weight_only" else guard
    count = -(-size // block)
    padded = np.pad(w_NK, ((0, 0), (0, count * block - size)))
    rows = np.ascontiguousarray(padded.reshape(-1, block))
    found_N = choose_scale(rows, config.weights, guard, None, top) if steps_N is None else steps_N
    scale_NB = found_N.reshape(-1, count)
    if moments_KK is not None:
        scale_NK = np.repeat(scale_NB, block, axis=1)[:, :size]
        refine = config.rounding == "descent"
        q_NK = second_order_blocks(w_NK, scale_NK, moments_KK, guard, top, refine)
    else:
        q_NK = round_rows(rows, scale_NB.reshape(-1), guard, top).reshape(len(w_NK), -1)[:, :size]
    found = LinearWeight(np.ascontiguousarray(q_NK), scale_NB, block, config.weight_bits, 0.0)
    error = float(np.square(found.dequantized() - w_NK, dtype=np.float64).sum())
    db = decibels(float(np.square(w_NK, dtype=np.float64).sum()), error)
    return LinearWeight(found.q_NK, found.scale_NB, block, config.weight_bits, db)


def emit_linears(model: ir.Model, encoded: Mapping[str, LinearWeight], config: QuantizeConfig) -> ir.Model:
    """A copy of the prepared model with these layers (by output name) in few bits."""
    model = model.clone()
    graph = model.graph
    names = Names(graph)
    form = _FORMS[config.mode, config.weight_bits]
    for node in list(graph):
        out = name_of(node.outputs[0]) if node.outputs else ""
        if out in encoded:
            _replace(graph, names, node, encoded[out], form)
    if any(node.domain == MICROSOFT for node in graph):
        model.opset_imports[MICROSOFT] = 1
    drop_unused_initializers(graph)
    model.producer_name = "penjing"
    return model


_Constant = Callable[[str, NDArray[np.generic]], ir.Value]
_Form = Callable[[_Constant, ir.Value, str, LinearWeight], list[ir.Node]]


def _replace(graph: ir.Graph, names: Names, node: ir.Node, weight: LinearWeight, form: _Form) -> None:
    x, held = node.inputs[0], node.inputs[1]
    assert x is not None
    assert held is not None
    stem, bias_O = name_of(held), bias_of(node) if node.op_type == "Gemm" else None

    def constant(part: str, array: NDArray[np.generic]) -> ir.Value:
        return set_initializer(graph, names.fresh(f"{stem}.{part}"), array)

    nodes = form(constant, x, stem, weight)
    if bias_O is not None:
        bias = constant("added_bias", bias_O)
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{stem}.add"))
    for index, new in enumerate(nodes):
        for position, value in enumerate(new.outputs):
            value.name = value.name or names.fresh(f"{stem}.{index}.{position}")
    graph.insert_before(node, nodes)
    old, final = node.outputs[0], nodes[-1].outputs[0]
    final.type, final.shape = old.type, old.shape
    take_place(graph, node, final)


def _dynamic(constant: _Constant, x: ir.Value, stem: str, weight: LinearWeight) -> list[ir.Node]:
    q_KN = constant("q", np.ascontiguousarray(weight.q_NK.T))
    scale_N = constant("scale", weight.scale_NB[:, 0])
    rounded = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"{stem}.round")
    levels, step, zero = rounded.outputs
    product = ir.node("MatMulInteger", [levels, q_KN, zero], name=f"{stem}.product")
    wide = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT.value}, name=f"{stem}.cast")
    steps = ir.node("Mul", [step, scale_N], name=f"{stem}.steps")
    scaled = ir.node("Mul", [wide.outputs[0], steps.outputs[0]], name=f"{stem}.scaled")
    return [rounded, product, wide, steps, scaled]


def _dequantized(constant: _Constant, x: ir.Value, stem: str, weight: LinearWeight) -> list[ir.Node]:
    q_KN = constant("q", np.ascontiguousarray(weight.q_NK.T))
    scale_N = constant("scale", weight.scale_NB[:, 0])
    restored = ir.node("DequantizeLinear", [q_KN, scale_N], {"axis": 1}, name=f"{stem}.dequantize")
    return [restored, ir.node("MatMul", [x, restored.outputs[0]], name=f"{stem}.product")]


def _four_bits(constant: _Constant, x: ir.Value, stem: str, weight: LinearWeight) -> list[ir.Node]:
    outputs, size = weight.q_NK.shape
    count = weight.scale_NB.shape[1]
    # Two levels a byte, the first in the low half; 8 stands for zero.
    levels = np.full((outputs, count * weight.block), 8, np.uint8)
    levels[:, :size] = (weight.q_NK.astype(np.int16) + 8).astype(np.uint8)
    packed = (levels[:, 0::2] | (levels[:, 1::2] << 4)).reshape(outputs, count, weight.block // 2)
    inputs = [
        x,
        constant("q", packed),
        constant("scale", weight.scale_NB.reshape(-1)),
    ]
    attributes = {"K": size, "N": outputs, "bits": 4, "block_size": weight.block, "accuracy_level": 4}
    return [ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=f"{stem}.product")]


_FORMS: dict[tuple[str, int], _Form] = {
    ("dynamic", 8): _dynamic,
    ("weight_only", 8): _dequantized,
    ("weight_only", 4): _four_bits,
}
"""How a layer is written, by mode and bits."""
