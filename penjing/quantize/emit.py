"""Write a placement and its numbers into a graph: quantize, dequantize, 8-bit constants. Decides nothing.

What is new is called after what it belongs to (``conv.weight.scale``), or as nearly so as the graph's own
names allow; a value's ``meta`` says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.encode import EncodedLayer
from penjing.quantize.graph import (
    Names,
    constant,
    consumers,
    drop_unused_initializers,
    name_of,
    only_consumer,
    set_initializer,
    take_place,
    upper_bound,
)
from penjing.quantize.place import Placement
from penjing.quantize.rules import RULES, WEIGHT_OPS
from penjing.quantize.scheme import ActivationParams

_COMPLETED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PASSED = frozenset({"Relu", "Clip", "Add", "Sum", "Sub", "Mul", "Div"})
"""Ops whose float weights ONNX Runtime rounds by itself between DQ and Q, and what may stand before Q."""

_ROUNDING = 1e-6
"""Of a bound: what its float32 share of a step may differ by."""

PARAMETER, STORES, RESTORES = "parameter", "stores", "restores"
"""Keys of ``meta``: what a new constant is (``NAME.scale``, ``activation:NAME.zero_point``…), and the tensor
that a value holds in 8 bits, or again in float."""


def emit(
    model: ir.Model,
    placement: Placement,
    params: Mapping[str, ActivationParams],
    encoded: Mapping[str, EncodedLayer],
) -> ir.Model:
    """A copy of the prepared model with Q/DQ pairs and 8-bit weights.

    Args:
        model: A prepared fp32 model; not changed.
        placement: What becomes 8-bit.
        params: Scale and zero point by root tensor.
        encoded: Numbers of each layer, by output name.
    """
    model = model.clone()
    graph = model.graph
    by_output = {name_of(node.outputs[0]): node for node in graph if node.outputs}
    writer = _Writer(graph, placement, params, frozenset(by_output[name] for name in placement.nodes))
    for out, layer in encoded.items():
        writer.emit_layer(by_output[out], layer)
    for name in placement.clamps:
        writer.absorb_clamp(by_output[name])
    values = {v.name: v for v in graph.inputs} | {v.name: v for node in graph for v in node.outputs}
    for name in placement.roots:
        if not writer.is_direct(values[name].producer()):
            writer.emit_pair(values[name])
    for node in list(graph):
        if writer.is_direct(node):
            writer.emit_direct(node)
    _keep_norms_apart(graph)
    _keep_products_apart(graph)
    _keep_floats_apart(graph)
    drop_unused_initializers(graph)
    model.producer_name = "penjing"
    model.ir_version = max(model.ir_version or 0, 7)
    return model


def _keep_norms_apart(graph: ir.Graph) -> None:
    """Write the residual Add before a LayerNormalization as Sum, the same function.

    ONNX Runtime (1.32) fuses the two into SkipLayerNormalization, whose CPU kernel takes 0.25 ms for
    128 × 384 values; apart they take 0.05 ms (`bench/quantize.py --case minilm`).
    """
    for node in graph:
        if node.op_type == "Add" and any(
            user.op_type == "LayerNormalization" for user in consumers(node.outputs[0])
        ):
            node.op_type = "Sum"


def _keep_products_apart(graph: ir.Graph) -> None:
    """Write the Add after an int8 MatMul as Sum, the same function, where it would become part of it.

    ONNX Runtime (1.32) makes MatMul and Add a Gemm before it looks for int8 layers, and then finds none: the
    bias is float, so its weight is restored to float in every call. It does so in two dimensions, and in more
    where every size is fixed.
    """
    for node in graph:
        if node.op_type == "Add" and any(map(_makes_gemm, node.inputs)):
            node.op_type = "Sum"


def _keep_floats_apart(graph: ir.Graph) -> None:
    """Let Q read a copy (a Max of it alone) of what a float layer makes of restored values.

    ONNX Runtime (1.32) takes a float Conv, ConvTranspose or Gemm between DQ and Q for an int8 layer whose
    weight someone forgot, and rounds that weight to 8 bits with one step for all of it: layers that stay in
    float on purpose would be the coarsest of the file. It does so past Relu and Clip, and past what it makes
    part of such a layer first (a MatMul and its Add are a Gemm).
    """
    names = Names(graph)
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if source is not None and _is_completed(source):
            node.replace_input_with(0, _copy(graph, names, source))


def _is_completed(value: ir.Value) -> bool:
    """Whether what Q alone reads comes from a float layer that reads restored values."""
    made: ir.Value | None = value
    while made is not None and len(consumers(made)) == 1 and (maker := made.producer()) is not None:
        if maker.op_type in _COMPLETED:
            restored = maker.inputs[0]
            restore = None if restored is None else restored.producer()
            dequantizes = restore is not None and restore.op_type == "DequantizeLinear"
            return dequantizes and constant(maker.inputs[1]) is not None
        if maker.op_type not in _PASSED:
            return False
        data = [held for held in maker.inputs if held is not None and constant(held) is None]
        made = data[0] if len(data) == 1 else None
    return False


def _copy(graph: ir.Graph, names: Names, value: ir.Value) -> ir.Value:
    """The same values once more, by a Max of them alone."""
    maker, stem = value.producer(), f"{name_of(value)}.apart"
    assert maker is not None
    node = ir.node("Max", [value], name=stem)
    out = node.outputs[0]
    out.name, out.shape, out.type = names.fresh(stem), value.shape, value.type
    graph.insert_after(maker, node)
    return out


def _makes_gemm(value: ir.Value | None) -> bool:
    """Whether a value comes from an int8 MatMul that a later Add would become part of."""
    maker = None if value is None else value.producer()
    weight = None if maker is None or maker.op_type != "MatMul" else maker.inputs[1]
    restore = None if weight is None else weight.producer()
    if value is None or restore is None or restore.op_type != "DequantizeLinear":
        return False
    return value.shape is None or len(value.shape) == 2 or all(isinstance(d, int) for d in value.shape)


@dataclass
class _Writer:
    """Edits one graph. ``chosen`` are the int8 nodes themselves: values change names on the way."""

    graph: ir.Graph
    placement: Placement
    params: Mapping[str, ActivationParams]
    chosen: frozenset[ir.Node]
    names: Names = field(init=False)
    held: dict[str, tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names(self.graph)

    def is_direct(self, node: ir.Node | None) -> bool:
        """Whether the node is a view that acts on the 8-bit tensor itself."""
        return node is not None and node in self.chosen and RULES[node.op_type].direct

    def emit_layer(self, node: ir.Node, layer: EncodedLayer) -> None:
        """Let a layer read its weight and bias from 8-bit and 32-bit constants."""
        weight = node.inputs[1]
        assert weight is not None
        name = name_of(weight)
        self._restore(node, 1, name, layer.weight.q, layer.weight.scale_O, layer.weight.axis)
        if layer.bias_O is not None and node.op_type != "MatMul":
            held = node.inputs[2] if len(node.inputs) > 2 else None
            stem = name.removesuffix(".weight")
            bias_name = self.names.fresh(f"{stem}.bias") if held is None else name_of(held)
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            self._restore(node, 2, bias_name, layer.bias_O, layer.bias_scale_O, 0)

    def _restore(
        self,
        node: ir.Node,
        position: int,
        name: str,
        q: NDArray[np.integer],
        scale_O: NDArray[np.float32],
        axis: int,
    ) -> None:
        inputs = [
            set_initializer(self.graph, name, q),
            self._parameter(f"{name}.scale", scale_O),
            self._parameter(f"{name}.zero_point", np.zeros(scale_O.shape, q.dtype)),
        ]
        dequantize = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}.dequantize")
        out = dequantize.outputs[0]
        out.name, out.shape = self.names.fresh(f"{name}.float"), ir.Shape(q.shape)
        out.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(position, out)

    def _parameter(self, name: str, array: NDArray[np.generic], kind: str = "") -> ir.Value:
        """A new constant: never one that the graph holds already."""
        value = set_initializer(self.graph, self.names.fresh(name), array)
        value.meta[PARAMETER] = kind + name
        return value

    def absorb_clamp(self, node: ir.Node) -> None:
        """Drop a Relu or Clip that the 8-bit output's bounds stand in for; its name moves to what it read."""
        out, source = node.outputs[0], node.inputs[0]
        name = name_of(out)
        assert source is not None
        params, top = self.params[self.placement.roots[name]], upper_bound(node)
        seen_only_as_8_bit = name in self.placement.emitted or (
            not out.is_graph_output() and all(reader in self.chosen for reader in consumers(out))
        )
        maker = source.producer()
        if (
            maker is None
            or maker not in self.chosen
            or not seen_only_as_8_bit
            or params.zero_point != 0
            or (top is not None and params.high > top * (1 + _ROUNDING))
        ):
            return
        take_place(self.graph, node, source)

    def emit_pair(self, value: ir.Value) -> None:
        """``value → Q → DQ``; readers take the restored value, or the exact one where that costs nothing."""
        name = name_of(value)
        emitted = name in self.placement.emitted
        readers = [(use.node, use.idx) for use in value.uses() if emitted or use.node in self.chosen]
        scale, zero = self._params_of(name)
        source = self._kept_apart(value)
        quantize = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}.quantize")
        dequantize = ir.node(
            "DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}.dequantize"
        )
        stored, restored = quantize.outputs[0], dequantize.outputs[0]
        stored.name, stored.shape = self.names.fresh(f"{name}.u8"), value.shape
        restored.name, restored.shape = self.names.fresh(f"{name}.float"), value.shape
        stored.type, restored.type = ir.TensorType(ir.DataType.UINT8), ir.TensorType(ir.DataType.FLOAT)
        stored.meta[STORES], restored.meta[RESTORES] = name, name
        producer = source.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        else:
            self.graph.insert_after(producer, [quantize, dequantize])
        for node, position in readers:
            node.replace_input_with(position, restored)
        if emitted and value.is_graph_output():
            for index, out in enumerate(self.graph.outputs):
                if out is value:
                    self.graph.outputs[index] = restored
            value.name = self.names.fresh(f"{name}.raw")
            restored.name = name

    def _kept_apart(self, value: ir.Value) -> ir.Value:
        """What Q reads of a value: of a layer's float output that others read, too, a Max of it alone, which
        is a copy.

        ONNX Runtime (1.32) takes an int8 kernel only where Q alone reads the output, or none does; a Relu or
        Clip before Q counts as Q, which it becomes.
        """
        before, made = value.producer(), value
        alone = not value.is_graph_output() and all(node in self.chosen for node in consumers(value))
        if before is not None and alone and before.op_type in ("Relu", "Clip"):
            made = before.inputs[0] or value
            alone = only_consumer(made) is before
        maker = made.producer()
        if (
            alone
            or before is None
            or maker is None
            or maker.op_type not in WEIGHT_OPS
            or maker not in self.chosen
            or name_of(made) in self.placement.emitted
        ):
            return value
        return _copy(self.graph, self.names, value)

    def emit_direct(self, node: ir.Node) -> None:
        """Let Pad and Split act on the 8-bit tensor: ``Q → op → DQ``, no ``Q → DQ → op → Q → DQ``."""
        restored = node.inputs[0]
        before = None if restored is None else restored.producer()
        assert before is not None
        assert before.op_type == "DequantizeLinear"
        node.replace_input_with(0, before.inputs[0])
        scale, zero = self._params_of(name_of(node.outputs[0]))
        if node.op_type == "Pad":
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, zero)
        for out in node.outputs:
            name, shape = name_of(out), out.shape
            dequantize = ir.node("DequantizeLinear", [out, scale, zero], name=f"{name}.dequantize")
            final = dequantize.outputs[0]
            out.replace_all_uses_with(final, replace_graph_outputs=True)
            dequantize.replace_input_with(0, out)
            out.name, out.type = self.names.fresh(f"{name}.u8"), ir.TensorType(ir.DataType.UINT8)
            out.meta[STORES] = name
            final.name, final.shape, final.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
            self.graph.insert_after(node, dequantize)

    def _params_of(self, name: str) -> tuple[ir.Value, ir.Value]:
        root = self.placement.roots[name]
        if root not in self.held:
            params = self.params[root]
            scale, zero = np.asarray(params.scale, np.float32), np.asarray(params.zero_point, np.uint8)
            self.held[root] = (
                self._parameter(f"{root}.scale", scale, "activation:"),
                self._parameter(f"{root}.zero_point", zero, "activation:"),
            )
        return self.held[root]
