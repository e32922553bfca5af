"""Decide which nodes run in int8 and which tensors are 8-bit. Decides only; weights are not touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from penjing.quantize.apart import stands_apart
from penjing.quantize.config import QuantizeConfig
from penjing.quantize.graph import (
    constant,
    consumers,
    float_nodes,
    int_attribute,
    is_float,
    layer_name,
    name_of,
    only_consumer,
)
from penjing.quantize.rules import RECURRENT_OPS, RULES, WEIGHT_OPS


@dataclass(frozen=True)
class Placement:
    """What becomes 8-bit. Names are of values in the prepared graph; a node is named by its first output.

    Attributes:
        layers: Weighted nodes in int8, in graph order: output name → layer name.
        nodes: All nodes in int8: the layers, their followers and views.
        roots: 8-bit tensors: name → name of the tensor whose scale and zero point it has.
        emitted: Tensors that come out of a kernel as 8-bit; all readers see the 8-bit value.
        apart: Layers with 8-bit weights that read and give floats: output name → layer name.
        clamps: Relu and Clip nodes that saturation replaces: output name → name of the value they read.
        kept: Weighted nodes in float: output name → why.
        floats: ``(name, op, why)`` of all other float computation.
    """

    layers: dict[str, str]
    nodes: frozenset[str]
    roots: dict[str, str]
    emitted: frozenset[str]
    apart: dict[str, str]
    clamps: dict[str, str]
    kept: dict[str, str]
    floats: tuple[tuple[str, str, str], ...]

    @property
    def all_layers(self) -> tuple[str, ...]:
        """Names of all layers with 8-bit weights."""
        return (*self.layers.values(), *self.apart.values())

    @property
    def observed(self) -> tuple[str, ...]:
        """Tensors whose range must be known, in a fixed order."""
        return tuple(dict.fromkeys(self.roots.values()))


@dataclass
class _Builder:
    graph: ir.Graph
    keep: Mapping[str, str]
    layers: dict[str, str] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    roots: dict[str, str] = field(default_factory=dict)
    emitted: set[str] = field(default_factory=set)
    apart: dict[str, str] = field(default_factory=dict)
    clamps: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def layer_names(graph: ir.Graph) -> dict[str, str]:
    """A distinct name for each node with constant weights: output name → layer name."""
    names: dict[str, str] = {}
    for node in graph:
        weighs = node.op_type in WEIGHT_OPS and constant(node.inputs[1]) is not None
        if weighs or stands_apart(node):
            base = name = layer_name(node)
            count = 1
            while name in names.values():
                count += 1
                name = f"{base}#{count}"
            names[name_of(node.outputs[0])] = name
    return names


def place(graph: ir.Graph, config: QuantizeConfig, keep: Mapping[str, str] | None = None) -> Placement:
    """Walk the graph once forwards (what is emitted as 8-bit) and once backwards (what layers need as 8-bit).

    Args:
        graph: A prepared graph.
        config: Uses ``ops`` and ``ignore``.
        keep: Layers to keep in float besides, by layer name, with the reason.
    """
    build = _Builder(graph, keep or {})
    names = layer_names(graph)
    for node in graph:
        out = name_of(node.outputs[0]) if node.outputs else ""
        if out not in names:
            continue
        why = _why_float(node, names[out], config, build.keep)
        if why:
            build.kept[out] = why
        elif node.op_type not in WEIGHT_OPS:
            build.apart[out] = names[out]
        else:
            build.layers[out] = names[out]
            build.nodes.add(out)
    _forwards(build)
    _backwards(build)
    _drop_idle_views(build)
    return Placement(
        layers=build.layers,
        nodes=frozenset(build.nodes),
        roots=build.roots,
        emitted=frozenset(build.emitted & build.roots.keys()),
        apart=build.apart,
        clamps={k: v for k, v in build.clamps.items() if k in build.roots},
        kept=build.kept,
        floats=tuple(_floats(build)),
    )


def _why_float(node: ir.Node, name: str, config: QuantizeConfig, keep: Mapping[str, str]) -> str:
    """The reason a weighted node stays in float, or "" when it can be int8."""
    if name in keep:
        return keep[name]
    if any(fnmatchcase(name, pattern) for pattern in config.ignore):
        return "ignored by the user"
    if node.op_type in RECURRENT_OPS:
        return _why_float_recurrent(node, config)
    if node.op_type not in config.ops:
        return f"{node.op_type} is not among the ops to quantize"
    if node.op_type == "Gather":
        return ""
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32:
        return "its weight is not float32"
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return "its bias is not constant"
    if node.op_type == "Gemm":
        if int_attribute(node, "transA", 0):
            return "Gemm with a transposed input has no int8 kernel"
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and bias.size != weight.shape[0 if int_attribute(node, "transB", 0) else 1]:
            return "its bias is not one value per output"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "MatMul with a stacked weight has no per-channel int8 kernel"
    return ""


def _why_float_recurrent(node: ir.Node, config: QuantizeConfig) -> str:
    if node.inputs[1] is not None and not is_float(node.inputs[1]):
        return "its weight is not float32"
    if node.op_type == "LSTM" and "LSTM" not in config.ops:
        return "LSTM is not among the ops to quantize"
    if config.mode == "weight_only":
        return "" if config.weight_bits == 8 else "weights of 4 bits are for linear layers"
    if node.op_type != "LSTM":
        return f"{node.op_type} has no 8-bit kernel: mode 'weight_only' stores its weights in 8 bits"
    if int_attribute(node, "layout", 0):
        return "an LSTM with the batch first has no 8-bit kernel"
    return ""


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    rule = RULES[node.op_type]
    picked = node.inputs if rule.data is None else [node.inputs[i] for i in rule.data]
    return [value for value in picked if value is not None]


def _terminal(build: _Builder, value: ir.Value) -> ir.Value:
    """The tensor to quantize for a value to be emitted: past a Relu or Clip(0, ·) if that alone reads it."""
    node = only_consumer(value)
    if node is None or node.op_type not in RULES or RULES[node.op_type].kind != "clamp":
        return value
    if node.op_type == "Clip":
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.inputs[0] is not value or low is None or float(low) != 0.0:
            return value
        if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
            return value
    out = node.outputs[0]
    build.clamps[name_of(out)] = name_of(value)
    return out


def _emit(build: _Builder, value: ir.Value) -> None:
    terminal = _terminal(build, value)
    build.roots[name_of(terminal)] = name_of(terminal)
    build.emitted.add(name_of(terminal))


def _forwards(build: _Builder) -> None:
    for node in build.graph:
        rule = RULES.get(node.op_type)
        out = name_of(node.outputs[0]) if node.outputs else ""
        if rule is None or not is_float(node.outputs[0]):
            continue
        if rule.kind == "weighted" and rule.must_emit and out in build.layers:
            _emit(build, node.outputs[0])
        elif rule.kind == "follower":
            data = _data_inputs(node)
            if data and all(name_of(v) in build.roots for v in data) and _leads_on(node.outputs[0]):
                build.nodes.add(out)
                _emit(build, node.outputs[0])
        elif rule.kind == "clamp" and out not in build.roots:
            # Not absorbed because others read its input too: it need not break a chain of 8-bit tensors.
            source = node.inputs[0]
            if source is not None and name_of(source) in build.roots and _leads_on(node.outputs[0]):
                build.nodes.add(out)
                _emit(build, node.outputs[0])
        elif rule.kind == "view":
            source = node.inputs[0]
            if source is not None and name_of(source) in build.roots and _is_view(node):
                _add_view(build, node)


def _leads_on(value: ir.Value) -> bool:
    """Whether a layer comes after: a follower at the end of the graph keeps the output's full precision."""
    seen: set[str] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        for node in consumers(current):
            if node.op_type in WEIGHT_OPS:
                return True
            for out in node.outputs:
                if out.name and out.name not in seen:
                    seen.add(out.name)
                    waiting.append(out)
    return False


def _is_view(node: ir.Node) -> bool:
    """Views whose options really move values only."""
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "Pad":
        mode = node.attributes.get("mode")
        value = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        has_value = len(node.inputs) > 2 and node.inputs[2] is not None
        return (
            (mode is None or mode.as_string() == "constant")
            and (not has_value or (value is not None and float(value.reshape(())) == 0.0))
            and len(node.inputs) < 4
        )
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    return True


def _add_view(build: _Builder, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    build.nodes.add(name_of(node.outputs[0]))
    for out in node.outputs:
        build.roots[name_of(out)] = build.roots[name_of(source)]
        build.emitted.add(name_of(out))


def _backwards(build: _Builder) -> None:
    """Every layer's input must be 8-bit; the step to 8 bits is taken before any views in between."""
    for node in build.graph:
        if node.op_type not in WEIGHT_OPS or name_of(node.outputs[0]) not in build.layers:
            continue
        value = node.inputs[0]
        assert value is not None
        path: list[ir.Node] = []
        while name_of(value) not in build.roots:
            producer = value.producer()
            rule = RULES.get(producer.op_type) if producer is not None else None
            if producer is None or rule is None or rule.kind != "view" or not _is_view(producer):
                break
            source = producer.inputs[0]
            if source is None or source.is_initializer() or len(producer.outputs) > 1:
                break
            path.append(producer)
            value = source
        if name_of(value) not in build.roots:
            producer = value.producer()
            if producer is not None and producer.op_type in RULES and RULES[producer.op_type].kind == "clamp":
                before = producer.inputs[0]
                if before is not None and only_consumer(before) is producer:
                    _terminal(build, before)
            build.roots[name_of(value)] = name_of(value)
        for view in reversed(path):
            _add_view(build, view)


def _drop_idle_views(build: _Builder) -> None:
    """A view that no int8 node reads stays in float: nothing is gained by a Q/DQ pair after it."""
    for node in reversed(list(build.graph)):
        rule = RULES.get(node.op_type)
        if rule is None or rule.kind != "view" or name_of(node.outputs[0]) not in build.nodes:
            continue
        readers = [n for out in node.outputs for n in consumers(out)]
        if not any(name_of(n.outputs[0]) in build.nodes for n in readers):
            build.nodes.discard(name_of(node.outputs[0]))
            for out in node.outputs:
                build.roots.pop(name_of(out), None)


def _floats(build: _Builder) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    names = layer_names(build.graph)
    replaced = {name for name in build.clamps if name in build.roots}
    for node in float_nodes(build.graph):
        out = name_of(node.outputs[0])
        if out in build.nodes or out in build.apart or out in replaced:
            continue
        if out in build.kept:
            found.append((names[out], node.op_type, build.kept[out]))
        elif node.op_type in WEIGHT_OPS:
            found.append((layer_name(node), node.op_type, "both operands are activations"))
        elif node.op_type not in RULES:
            found.append((layer_name(node), node.op_type, f"no rule for {node.op_type}"))
        elif RULES[node.op_type].kind == "follower":
            found.append((layer_name(node), node.op_type, "not between int8 layers"))
    return found
