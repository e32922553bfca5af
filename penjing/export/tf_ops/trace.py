"""Walk an ONNX graph and apply the op table: the body of the `tf.function` that becomes the SavedModel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from penjing.errors import ExportError
from penjing.export.onnx_node import STANDARD, attribute, standard_opset
from penjing.export.tf_ops import OPS
from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node
from penjing.export.tf_ops.parts import fold_parts
from penjing.export.tf_ops.value import Tensor, Value, Weights

_FOLD_LIMIT = 1 << 16
"""Ops on constants are computed now if they make no more elements than they take, or than this: files stay
small."""


class GraphTracer:
    """An ONNX graph that can be called with TensorFlow tensors.

    Args:
        model: The model with its weights loaded.

    Raises:
        ExportError: if an op has no rule, naming every such op and one node of each.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = standard_opset(model)
        self.weights = Weights()
        self.initial = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.inputs = [i for i in self.graph.input if i.name not in self.initial]
        self.shapes = self._known_shapes(model)
        missing: dict[str, str] = {}
        for node in self.graph.node:
            if node.op_type not in OPS or node.domain not in STANDARD:
                missing.setdefault(node.op_type, node.name or node.output[0])
        if missing:
            raise ExportError(
                f"no TensorFlow translation for ONNX {', '.join(sorted(missing))}",
                layer=", ".join(missing.values()),
                remedy="Export to ONNX only, or change these layers",
            )

    def _known_shapes(self, model: onnx.ModelProto) -> dict[str, list[int | None]]:
        infos = [*self.graph.value_info, *self.graph.output]
        if len(self.graph.value_info) < len(self.graph.node) // 2:
            try:
                # Only names and dimensions are wanted, so the weights stay behind.
                inferred = onnx.shape_inference.infer_shapes(_without_weights(model))
                infos = [*inferred.graph.value_info, *self.graph.output]
            except onnx.shape_inference.InferenceError:
                infos = list(self.graph.output)  # shapes are a help, never a need
        known = {}
        for info in infos:
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
                dims = info.type.tensor_type.shape.dim
                known[info.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        return known

    def __call__(
        self, tensors: dict[str, Tensor], watch: Callable[[str, Value], None] | None = None
    ) -> list[Value]:
        """Outputs in the graph's order for input tensors by name (ONNX order); ``watch`` sees every value."""
        values: dict[str, Value | None] = {"": None}
        for name, array in self.initial.items():
            values[name] = Value(const=array, key=name, weights=self.weights)
        for name, tensor in tensors.items():
            values[name] = Value(plain=tensor)
        uses: dict[str, int] = {}
        for proto in self.graph.node:
            for name in proto.input:
                uses[name] = uses.get(name, 0) + 1
        kept = {output.name for output in self.graph.output}
        for proto in self.graph.node:
            self._run(proto, values)
            for name in proto.output:
                made = values.get(name)
                if watch is not None and made is not None:
                    watch(name, made)
            for name in proto.input:  # let intermediate constants go as soon as their last reader is done
                uses[name] -= 1
                if name and not uses[name] and name not in kept:
                    values.pop(name, None)
        outputs = []
        for output in self.graph.output:
            value = values[output.name]
            assert value is not None
            outputs.append(value)
        return outputs

    def _run(self, proto: onnx.NodeProto, values: dict[str, Value | None]) -> None:
        names = list(proto.output)
        node = Node(
            op=proto.op_type,
            name=proto.name or (names[0] if names else ""),
            inputs=[values[name] for name in proto.input],
            attributes={a.name: attribute(a) for a in proto.attribute},
            opset=self.opset,
            num_outputs=sum(1 for name in names if name),
            out_shapes=[self.shapes.get(name) for name in names],
            weights=self.weights,
        )
        try:
            results = self._results(node)
        except ExportError:
            raise
        except Exception as error:  # TensorFlow raises many kinds for operands it cannot take
            raise node.error(
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from error
        for name, value in zip(names, results, strict=False):
            if not name:
                continue
            value.key = value.key or name
            value.weights = value.weights or self.weights
            shape = self.shapes.get(name)
            if shape is not None and value.const is None and value.quantized is None:
                value.set_shape(shape)
            values[name] = value

    def _results(self, node: Node) -> list[Value]:
        folded = fold_parts(node)
        if folded is not None:
            return [folded]
        if _can_fold(node):
            return _folded(node)
        result = OPS[node.op](node)
        return result if isinstance(result, list) else [result]


def _can_fold(node: Node) -> bool:
    constants = [value.const for value in node.inputs if value is not None]
    if node.op in ("Constant", "DequantizeLinear") or not constants or any(c is None for c in constants):
        return False
    sizes = [int(np.prod([d or 1 for d in shape])) for shape in node.out_shapes if shape is not None]
    return sum(sizes) <= max(_FOLD_LIMIT, sum(c.size for c in constants if c is not None))


def _folded(node: Node) -> list[Value]:
    """Compute a node whose inputs are all constants, now."""
    with tf.init_scope():
        node.weights = None
        node.inputs = [None if v is None else Value(const=v.const, key=v.key) for v in node.inputs]
        result = OPS[node.op](node)
        results = result if isinstance(result, list) else [result]
        return [Value(const=r.const if r.const is not None else r.plain().numpy()) for r in results]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large initializers turned into inputs of the same type and shape."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.name = model.graph.name
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) <= 1024:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light
