"""Recurrent layers in 8 bits: an LSTM's products with activations rounded as they come, or weights alone.

=======================  ===============================================  ======================
op written               its weights                                      mode
=======================  ===============================================  ======================
``DynamicQuantizeLSTM``  of an LSTM, 8 bits (``com.microsoft``)           ``static``, ``dynamic``
``DequantizeLinear``     of an LSTM, GRU or RNN, 8 bits (standard ONNX)   ``weight_only``
=======================  ===============================================  ======================

The weights are matrices of directions × outputs × inputs, W for the input and R for the state. Exporters put
them together from the user's own, gate by gate; levels are found for the whole and told by the user's names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from penjing.quantize.config import QuantizeConfig
from penjing.quantize.graph import Names, constant, drop_unused_initializers, name_of, set_initializer
from penjing.quantize.linears import MICROSOFT, LinearWeight, encode_rows
from penjing.quantize.runtime import Session
from penjing.quantize.weights import Guard

DERIVED = "derived"
"""Key of ``meta``: a constant whose numbers stand elsewhere under the user's names."""

_MATRICES = (1, 2)
"""Inputs that hold W and R."""


@dataclass(frozen=True)
class Matrix:
    """W or R of a layer in 8 bits.

    Attributes:
        numbers: Levels and steps, (directions · outputs) × inputs.
        directions: How many it has.
        stored: The same numbers as the graph's own weights have them, by name.
    """

    numbers: LinearWeight
    directions: int
    stored: dict[str, LinearWeight]

    @property
    def levels_DNK(self) -> NDArray[np.int8]:
        """Levels: directions × outputs × inputs."""
        return self.numbers.q_NK.reshape(self.directions, -1, self.numbers.q_NK.shape[1])

    @property
    def scale_DN(self) -> NDArray[np.float32]:
        """Steps: directions × outputs."""
        return self.numbers.scale_NB.reshape(self.directions, -1)


Recurrent = tuple[Matrix, Matrix]
"""W and R of one layer."""


def encode_recurrent(
    model: ir.Model, outputs: Sequence[str], config: QuantizeConfig, guard: Guard
) -> dict[str, Recurrent]:
    """Round the weights of these layers, named by their first output.

    Args:
        model: A prepared graph; not changed.
        outputs: Layers that `penjing.quantize.place` chose.
        config: Uses ``mode`` and ``weights``.
        guard: What protects 16-bit sums.
    """
    wanted = [node for node in model.graph if node.outputs and node.outputs[0].name in set(outputs)]
    names = [name_of(value) for node in wanted for value in _matrices(node)]
    if not names:
        return {}
    exact, origins = _made_of(model, names)

    def matrix(value: ir.Value) -> Matrix:
        name = name_of(value)
        w_DNK = exact[name].astype(np.float32, copy=False)
        numbers = encode_rows(w_DNK.reshape(-1, w_DNK.shape[-1]), config, guard)
        return Matrix(numbers, len(w_DNK), _stored(name, numbers, origins[name]))

    def layer(node: ir.Node) -> Recurrent:
        of_input, of_state = map(matrix, _matrices(node))
        return of_input, of_state

    return {name_of(node.outputs[0]): layer(node) for node in wanted}


def emit_recurrent(model: ir.Model, encoded: Mapping[str, Recurrent], mode: str) -> ir.Model:
    """Write these layers in 8 bits; the model is changed and returned."""
    if not encoded:
        return model
    graph = model.graph
    names = Names(graph)
    for node in list(graph):
        out = name_of(node.outputs[0]) if node.outputs else ""
        if out in encoded:
            (_restored if mode == "weight_only" else _dynamic)(graph, names, node, encoded[out])
    if mode != "weight_only":
        model.opset_imports[MICROSOFT] = 1
    common.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(graph)
    return model


def told_recurrent(
    encoded: Mapping[str, Recurrent], layers: Mapping[str, str]
) -> list[tuple[str, str, LinearWeight]]:
    """Weight name, layer name and numbers of every weight of the graph's own that these layers have."""
    return [
        (name, layers[out], numbers)
        for out, matrices in encoded.items()
        for matrix in matrices
        for name, numbers in matrix.stored.items()
    ]


def worst_db(encoded: Mapping[str, Recurrent]) -> dict[str, float]:
    """Signal to error of each layer's weights: of its two matrices, the worse."""
    return {out: min(matrix.numbers.weight_db for matrix in matrices) for out, matrices in encoded.items()}


def _matrices(node: ir.Node) -> list[ir.Value]:
    return [value for at in _MATRICES if (value := node.inputs[at]) is not None]


def _made_of(
    model: ir.Model, names: Sequence[str]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, dict[str, NDArray[np.int64]]]]:
    """The numbers of constant matrices, and for each, by name of the graph's own weights, which of its rows
    are theirs, in their order.

    The rows find themselves: the same graph is run on weights whose every row holds its own number.
    """
    given = {
        name: array for name, v in model.graph.initializers.items() if (array := constant(v)) is not None
    }
    exact = {name: given[name] for name in names if name in given}
    origins = {name: {name: np.arange(given[name][..., 0].size)} for name in exact}
    made = [name for name in dict.fromkeys(names) if name not in exact]
    if not made:
        return exact, origins
    part = ir.Model(ir.convenience.extract(model.graph, [], made), ir_version=model.ir_version)
    exact |= Session(part, outputs=made).run({})
    first, spans = 0, {}
    for name in part.graph.initializers:
        array = given[name]
        if array.dtype == np.float32 and array.ndim > 1:
            count = array[..., 0].size
            numbered = np.arange(first, first + count, dtype=np.float32).reshape(*array.shape[:-1], 1)
            set_initializer(part.graph, name, np.broadcast_to(numbered, array.shape))
            spans[name] = range(first, first + count)
            first += count
    for name, numbered in Session(part, outputs=made).run({}).items():
        rows_NK = numbered.reshape(-1, numbered.shape[-1]).astype(np.int64)
        place = np.full(first, -1)
        place[rows_NK[:, 0]] = np.arange(len(rows_NK))
        own = {source: place[span.start : span.stop] for source, span in spans.items()}
        own = {source: rows for source, rows in own.items() if (rows >= 0).any()}
        whole = (rows_NK == rows_NK[:, :1]).all() and all((rows >= 0).all() for rows in own.values())
        # made otherwise (scaled, cut): told under the name of what is made
        origins[name] = own if whole else {name: np.arange(len(rows_NK))}
    return exact, origins


def _stored(
    name: str, numbers: LinearWeight, origins: Mapping[str, NDArray[np.int64]]
) -> dict[str, LinearWeight]:
    return {
        source: LinearWeight(
            numbers.q_NK[rows], numbers.scale_NB[rows], numbers.block, numbers.bits, numbers.weight_db
        )
        for source, rows in origins.items()
    }


def _constant(graph: ir.Graph, names: Names, stem: str, part: str, array: NDArray[np.generic]) -> ir.Value:
    value = set_initializer(graph, names.fresh(f"{stem}.{part}"), array)
    value.meta[DERIVED] = True
    return value


def _dynamic(graph: ir.Graph, names: Names, node: ir.Node, layer: Recurrent) -> None:
    """In the layout of ONNX Runtime: directions × inputs × outputs."""
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    for at, matrix in zip(_MATRICES, layer, strict=True):
        stem = next(iter(matrix.stored))
        inputs[at] = _constant(graph, names, stem, "q", matrix.levels_DNK.transpose(0, 2, 1))
        inputs.append(_constant(graph, names, stem, "steps", matrix.scale_DN))
        inputs.append(_constant(graph, names, stem, "zeros", np.zeros(matrix.scale_DN.shape, np.int8)))
    attributes = [a for name, a in node.attributes.items() if name != "layout"]
    new = ir.Node(
        MICROSOFT,
        "DynamicQuantizeLSTM",
        inputs,
        attributes,
        num_outputs=len(node.outputs),
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, new)
    for old, value in zip(node.outputs, new.outputs, strict=True):
        value.type, value.shape, name = old.type, old.shape, old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        value.name, old.name = name, None
    graph.remove(node, safe=True)


def _restored(graph: ir.Graph, names: Names, node: ir.Node, layer: Recurrent) -> None:
    for at, matrix in zip(_MATRICES, layer, strict=True):
        stem = next(iter(matrix.stored))
        levels = _constant(graph, names, stem, "q", matrix.numbers.q_NK)
        steps = _constant(graph, names, stem, "steps", matrix.numbers.scale_NB[:, 0])
        shape = _constant(graph, names, stem, "shape", np.array(matrix.levels_DNK.shape))
        floats = ir.node("DequantizeLinear", [levels, steps], {"axis": 0}, name=f"{stem}.dequantize")
        shaped = ir.node("Reshape", [floats.outputs[0], shape], name=f"{stem}.shaped")
        for value in (floats.outputs[0], shaped.outputs[0]):
            value.name = names.fresh(f"{stem}.float")
        graph.insert_before(node, [floats, shaped])
        node.replace_input_with(at, shaped.outputs[0])
