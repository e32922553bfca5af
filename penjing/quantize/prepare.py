"""Bring an ONNX model into the form quantization works on: inference ops only, norms folded, own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common

from penjing.errors import QuantizeError
from penjing.export.onnx_affine import fold_affine
from penjing.export.onnx_layout import cancel_transposes
from penjing.export.onnx_pads import merge_pads
from penjing.export.onnx_softmax import floor_masked
from penjing.floats import only_other_floats
from penjing.models.onnx_floats import floats_of_graph
from penjing.quantize.constants import constant_part, work_out
from penjing.quantize.fold import fold_batch_norm, fold_gemm_factors
from penjing.quantize.graph import (
    Names,
    constant,
    consumers,
    drop_unused_initializers,
    int_attribute,
    ints_attribute,
    is_made_of_constants,
    name_of,
    set_initializer,
    take_place,
)
from penjing.quantize.rules import WEIGHT_OPS

MIN_OPSET = 13
"""First opset whose DequantizeLinear has an axis."""

_QUANTIZED = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "QLinearConv"),
        *("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "MatMulNBits"),
    )
)
"""Ops that only files in few bits have."""


def load_onnx(path: Path) -> ir.Model:
    """Read an ONNX file, raised to opset 17 where it is older than 13.

    Raises:
        QuantizeError: if it cannot be read, is quantized already, or has no weight in float32.
    """
    try:
        proto = onnx.load(path)
        versions = {entry.domain: entry.version for entry in proto.opset_import}
        if versions.get("", MIN_OPSET) < MIN_OPSET:
            proto = version_converter.convert_version(proto, 17)
        model = ir.from_proto(proto)
        _check_order(model.graph)
    except Exception as error:  # onnx raises many kinds: protobuf, file and conversion errors
        raise QuantizeError(
            f"cannot read {path} ({error})", remedy="Give an ONNX file that onnx.checker accepts"
        ) from error
    quantized = [node for node in model.graph if node.op_type in _QUANTIZED]
    if quantized:
        raise QuantizeError(
            f"{path} is quantized already ({quantized[0].op_type} at {quantized[0].name})",
            remedy="Give the fp32 model",
        )
    if others := only_other_floats(floats_of_graph(proto.graph)):
        raise QuantizeError(
            f"the weights of {path} are {others}",
            remedy="Export it in float32, and give data of float32",
        )
    return model


def _check_order(graph: ir.Graph) -> None:
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        lost = next((value for value in node.inputs if value is not None and value not in known), None)
        if lost is not None:
            raise ValueError(f"{node.name} reads {lost.name!r}, which nothing before it gives")
        known |= set(node.outputs)


def prepare(model: ir.Model) -> ir.Model:
    """The same function with constants as initializers, no Identity or Dropout, and norms folded; padding of
    convolutions in numbers, masked softmax where floats are normal, few transposes.

    The model given may be changed, too.
    """
    first: list[ir.passes.PassBase] = [
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveInitializersFromInputsPass(),
    ]
    last: list[ir.passes.PassBase] = [common.RemoveUnusedNodesPass(), common.NameFixPass()]
    for step in first:
        model = step(model).model
    _remove_dropout(model.graph)
    _remove_identities(model.graph)
    floor_masked(model.graph)
    _work_out_weights(model)
    for step in last:  # which leave every value with a name
        model = step(model).model
    model = cancel_transposes(model)
    graph = model.graph
    _own_weights(graph)
    fold_gemm_factors(graph)
    fold_batch_norm(graph)
    fold_affine(graph)
    merge_pads(graph)
    _write_pads(graph)
    _write_pools(graph)
    _global_means(graph)
    drop_unused_initializers(graph)
    return model


def _remove_dropout(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "Dropout" and not any(out.uses() for out in node.outputs[1:]):
            _bypass(graph, node)


def _remove_identities(graph: ir.Graph) -> None:
    """Take out Identity nodes, except in the bodies of loops and branches: what leaves these must be made
    there.
    """
    for node in [node for node in graph if node.op_type == "Identity"]:
        source, out = node.inputs[0], node.outputs[0]
        if source is not None and out.is_graph_output():
            if source.producer() is None or source.is_graph_output():
                continue
            source.name, out.name = out.name, source.name
            ir.convenience.replace_all_uses_with(out, source, replace_graph_outputs=True)
            graph.remove(node, safe=True)
        else:
            _bypass(graph, node)


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    source, out = node.inputs[0], node.outputs[0]
    if source is None or out.is_graph_output():
        return
    out.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def _work_out_weights(model: ir.Model) -> None:
    """Make numbers of weights that are made of others: the turned table of words that a head is tied to."""
    readers = [node for node in model.graph if node.op_type in WEIGHT_OPS]
    weights = [value for node in readers if (value := node.inputs[1]) is not None]
    made = {name_of(v): v for v in weights if not v.is_initializer() and is_made_of_constants(v)}
    if not made:
        return
    names = Names(model.graph)
    for name, array in work_out(constant_part(model, list(made))).items():
        held = set_initializer(model.graph, names.fresh(f"{name}.made"), array)
        for node in readers:
            if node.inputs[1] is made[name]:
                node.replace_input_with(1, held)


def _own_weights(graph: ir.Graph) -> None:
    """Give each Conv, Gemm and MatMul a weight and bias that no other node reads."""
    for node in graph:
        if node.op_type not in WEIGHT_OPS:
            continue
        for position in range(1, len(node.inputs)):
            value = node.inputs[position]
            array = constant(value)
            if value is None or array is None or len(value.uses()) == 1:
                continue
            taken = sum(1 for name in graph.initializers if name.startswith(f"{value.name}@"))
            copy = set_initializer(graph, f"{value.name}@{taken + 2}", array)
            node.replace_input_with(position, copy)


def _write_pads(graph: ir.Graph) -> None:
    """Write ``auto_pad`` of convolutions as ``pads``; it stays where it hangs on a size that is not known."""
    for node in graph:
        if node.op_type != "Conv" or "auto_pad" not in node.attributes:
            continue
        if (kind := node.attributes.get_string("auto_pad")) == "NOTSET":
            del node.attributes["auto_pad"]
            continue
        source, weight = node.inputs[0], constant(node.inputs[1])
        if source is None or weight is None:
            continue
        kernel = weight.shape[2:]
        ones = [1] * len(kernel)
        sides = [None] * len(kernel) if source.shape is None else source.shape[2:]
        strides, dilations = ints_attribute(node, "strides", ones), ints_attribute(node, "dilations", ones)
        axes = zip(sides, kernel, strides, dilations, strict=True)
        totals = [0 if kind == "VALID" else _total_pad(*axis) for axis in axes]
        known = [total for total in totals if total is not None]
        if len(known) == len(totals):
            less, more = [total // 2 for total in known], [total - total // 2 for total in known]
            del node.attributes["auto_pad"]
            pads = [*more, *less] if kind == "SAME_LOWER" else [*less, *more]
            node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _write_pools(graph: ir.Graph) -> None:
    """Write average pools so that ONNX Runtime's 8-bit ones compute what they say.

    Those divide by the whole kernel where padding counts and a window reaches past it (``ceil_mode``), so
    padding that counts is made before, as values. They know no dilations, not even of 1: the file would not
    load.
    """
    names = Names(graph)
    for node in [node for node in graph if node.op_type == "AveragePool"]:
        if set(ints_attribute(node, "dilations", [0])) == {1}:
            del node.attributes["dilations"]
        source, rank = node.inputs[0], len(ints_attribute(node, "kernel_shape", []))
        counts = int_attribute(node, "ceil_mode", 0) and int_attribute(node, "count_include_pad", 0)
        if not counts or source is None or "auto_pad" in node.attributes:
            continue
        pads = ints_attribute(node, "pads", [0] * 2 * rank)
        if any(pads):
            sides = [None] * rank if source.shape is None else source.shape[2:]
            known = [int(side) for side in sides if isinstance(side, int)]
            if len(known) < rank:
                continue
            node.attributes["pads"] = ir.AttrInt64s("pads", [0] * 2 * rank)
            node.replace_input_with(0, _padded(graph, names, node, known, pads))
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)


def _padded(graph: ir.Graph, names: Names, pool: ir.Node, sides: list[int], pads: list[int]) -> ir.Value:
    """The pool's input within zeros, at the end no more than its last window takes: none begins behind."""
    source, rank = pool.inputs[0], len(sides)
    assert source is not None
    kernel = ints_attribute(pool, "kernel_shape", [])
    axes = zip(
        sides, kernel, ints_attribute(pool, "strides", [1] * rank), pads[:rank], pads[rank:], strict=True
    )
    begins, ends = pads[:rank], []
    for side, reach, stride, begin, end in axes:
        windows = -(-(side + begin + end - reach) // stride) + 1
        last = (windows - 1) * stride
        last -= stride if last >= side + begin else 0
        ends.append(max(min(end, last + reach - side - begin), 0))
    stem = f"{name_of(pool.outputs[0])}.padded"
    rims = set_initializer(graph, names.fresh(f"{stem}.sides"), np.array([0, 0, *begins, 0, 0, *ends]))
    pad = ir.node("Pad", [source, rims], name=names.fresh(stem))
    out = pad.outputs[0]
    out.name, out.type = pad.name, source.type
    if source.shape is not None:
        spatial = [sum(parts) for parts in zip(sides, begins, ends, strict=True)]
        out.shape = ir.Shape([*source.shape[:2], *spatial])
    graph.insert_before(pool, pad)
    return out


def _total_pad(side: Any, kernel: int, stride: int, dilation: int) -> int | None:
    """Zeros that an axis of ``ceil(side/stride)`` outputs needs; None where that hangs on an unknown side."""
    reach = dilation * (kernel - 1)
    if stride == 1:
        return reach
    return max((side - 1) // stride * stride + reach + 1 - side, 0) if isinstance(side, int) else None


def _global_means(graph: ir.Graph) -> None:
    """Write a mean over all spatial axes as the pooling op that has an 8-bit kernel."""
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "ReduceMean" or source is None or source.shape is None or len(source.shape) < 3:
            continue
        rank = len(source.shape)
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        attribute = node.attributes.get("axes")
        axes = (
            given.tolist()
            if given is not None
            else list(attribute.as_ints())
            if attribute is not None
            else []
        )
        if sorted(a % rank for a in axes) != list(range(2, rank)):
            continue
        # Only where a convolution feeds it: on its own the rewrite would gain nothing.
        producer = source.producer()
        if producer is None or producer.op_type not in {
            "Conv",
            "Relu",
            "Clip",
            "Add",
            "Mul",
            "Concat",
            "MaxPool",
        }:
            continue
        old = node.outputs[0]
        if not consumers(old) and not old.is_graph_output():
            continue
        keep = node.attributes.get("keepdims")
        pooled = ir.node("GlobalAveragePool", [source], name=f"{node.name}_pool")
        out = pooled.outputs[0]
        out.name, out.type = f"{name_of(old)}_pool", old.type
        out.shape = ir.Shape([*source.shape[:2], *[1] * (rank - 2)])
        nodes = [pooled]
        if keep is not None and not keep.as_int():
            flat = ir.node("Flatten", [out], {"axis": 1}, name=f"{node.name}_flat")
            nodes.append(flat)
        graph.insert_before(node, nodes)
        for new in nodes:
            new.metadata_props.update(node.metadata_props)
        final = nodes[-1].outputs[0]
        final.type, final.shape = old.type, old.shape
        take_place(graph, node, final)
