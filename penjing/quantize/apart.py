"""Layers with 8-bit weights that read and give floats: recurrent ones, and tables of embeddings.

=======================  ===================================================  ======================
op written               its weights                                          mode
=======================  ===================================================  ======================
``DynamicQuantizeLSTM``  of an LSTM; activations are rounded as they come     ``static``, ``dynamic``
``DequantizeLinear``     of an LSTM, GRU or RNN                               ``weight_only``
``Gather``, ``Mul``      a table, a step a row; what is looked up is restored  all
=======================  ===================================================  ======================

The first is ONNX Runtime's own (``com.microsoft``), the others are standard ONNX. Recurrent weights are
matrices of directions × outputs × inputs, W for the input and R for the state. Exporters put them together
from the user's own, gate by gate; levels are found for the whole and told by the user's names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from penjing.quantize.config import QuantizeConfig
from penjing.quantize.constants import constant_part, work_out
from penjing.quantize.graph import (
    Names,
    constant,
    drop_unused_initializers,
    int_attribute,
    is_made_of_constants,
    name_of,
    set_initializer,
    take_place,
)
from penjing.quantize.linears import MICROSOFT, LinearWeight, encode_rows
from penjing.quantize.rules import RECURRENT_OPS
from penjing.quantize.weights import Guard

DERIVED = "derived"
"""Key of ``meta``: a constant whose numbers stand elsewhere under the user's names."""

_ROOM = 1024
"""Numbers that a table has at least: below, nothing is gained."""
_ROW = 8
"""Numbers in a row at least, as every row has a step of its own."""


@dataclass(frozen=True)
class Matrix:
    """W or R of a recurrent layer, or a table, in 8 bits.

    Attributes:
        numbers: Levels and steps, (directions · outputs) × inputs; of a table, rows × features.
        directions: How many it has; a table has one.
        stored: The same numbers as the graph's own weights have them, by name.
    """

    numbers: LinearWeight
    directions: int
    stored: dict[str, LinearWeight]

    @property
    def stem(self) -> str:
        """What new constants are called after: the first of these names."""
        return next(iter(self.stored))

    @property
    def levels_DNK(self) -> NDArray[np.int8]:
        """Levels: directions × outputs × inputs."""
        return self.numbers.q_NK.reshape(self.directions, -1, self.numbers.q_NK.shape[1])

    @property
    def scale_DN(self) -> NDArray[np.float32]:
        """Steps: directions × outputs."""
        return self.numbers.scale_NB.reshape(self.directions, -1)


Number = TypeVar("Number", bound=np.generic)
Apart = tuple[Matrix, ...]
"""What a layer has: W and R, or a table."""


def stands_apart(node: ir.Node) -> bool:
    """Whether it is such a layer, of constant weights; a table is large, and looked up by the data."""
    if node.op_type in RECURRENT_OPS:
        return all(map(is_made_of_constants, _weights(node)))
    if node.op_type != "Gather" or int_attribute(node, "axis", 0) != 0:
        return False
    table = constant(node.inputs[0])
    return (
        table is not None
        and table.dtype == np.float32
        and table.ndim == 2
        and table.size >= _ROOM
        and table.shape[1] >= _ROW
        and not is_made_of_constants(node.inputs[1])
    )


def encode_apart(
    model: ir.Model,
    outputs: Sequence[str],
    config: QuantizeConfig,
    guard: Guard,
    steps: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, Apart]:
    """Round the weights of these layers, named by their first output.

    Args:
        model: A prepared graph; not changed.
        outputs: Layers that `penjing.quantize.place` chose.
        config: Uses ``mode`` and ``weights``, and ``weight_bits`` in mode ``static``.
        guard: What protects 16-bit sums; tables are looked up, so they need none.
        steps: Steps that training learned, by the name of the matrix in the graph.
    """
    if config.mode == "weight_only":  # where linear weights have 4 bits, these still have 8
        config = config.model_copy(update={"weight_bits": 8})
    wanted = [node for node in model.graph if node.outputs and node.outputs[0].name in set(outputs)]
    names = [name for node in wanted for name in matrix_names(node)]
    multiplied = {name for node in wanted if node.op_type != "Gather" for name in matrix_names(node)}
    if not names:
        return {}
    exact, origins = _made_of(model, names)
    found: dict[str, Matrix] = {}
    for name in dict.fromkeys(names):
        weight = exact[name].astype(np.float32, copy=False)
        own = guard if name in multiplied else "off"
        numbers = encode_rows(_rows(weight), config, own, steps_N=(steps or {}).get(name))
        directions = 1 if weight.ndim == 2 else len(weight)
        found[name] = Matrix(numbers, directions, _stored(name, numbers, origins[name]))
    return {name_of(node.outputs[0]): tuple(found[name] for name in matrix_names(node)) for node in wanted}


def emit_apart(model: ir.Model, encoded: Mapping[str, Apart], mode: str) -> ir.Model:
    """Write these layers in 8 bits; the model is changed and returned."""
    if not encoded:
        return model
    writer = _Writer(model.graph)
    for node in list(model.graph):
        out = name_of(node.outputs[0]) if node.outputs else ""
        if out not in encoded:
            continue
        if node.op_type == "Gather":
            writer.looked_up(node, *encoded[out])
        elif mode == "weight_only":
            writer.restored(node, encoded[out])
        else:
            writer.dynamic(node, encoded[out])
            model.opset_imports[MICROSOFT] = 1
    common.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(model.graph)
    return model


def told_apart(
    encoded: Mapping[str, Apart], layers: Mapping[str, str]
) -> list[tuple[str, str, LinearWeight]]:
    """Weight name, layer name and numbers of every weight of the graph's own that these layers have."""
    found = {
        name: (name, layers[out], numbers)
        for out, matrices in encoded.items()
        for matrix in matrices
        for name, numbers in matrix.stored.items()
    }
    return list(found.values())  # a table that is read in two places stands there once


def worst_db(encoded: Mapping[str, Apart]) -> dict[str, float]:
    """Signal to error of each layer's weights: of two matrices, the worse."""
    return {out: min(matrix.numbers.weight_db for matrix in matrices) for out, matrices in encoded.items()}


def weights_at(node: ir.Node) -> tuple[int, ...]:
    """Which inputs hold the weights."""
    if node.op_type in RECURRENT_OPS:
        return (1, 2)
    return (0,) if node.op_type == "Gather" else (1,)


def matrix_names(node: ir.Node) -> tuple[str, ...]:
    """Names in the graph of what `Apart` holds of this layer."""
    return tuple(map(name_of, _weights(node)))


def _weights(node: ir.Node) -> list[ir.Value]:
    return [value for at in weights_at(node) if (value := node.inputs[at]) is not None]


def _made_of(
    model: ir.Model, names: Sequence[str]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, dict[str, NDArray[np.int64]]]]:
    """The numbers of constant matrices, and for each, by name of the graph's own weights, which of its rows
    are theirs, in their order.

    The rows find themselves: the same graph is run on weights whose every row holds its own number.
    """
    held = ((name, constant(value)) for name, value in model.graph.initializers.items())
    given = {name: array for name, array in held if array is not None}
    exact = {name: given[name] for name in names if name in given}
    origins = {name: {name: np.arange(_rows(array).shape[0])} for name, array in exact.items()}
    made = [name for name in dict.fromkeys(names) if name not in exact]
    if not made:
        return exact, origins
    part = constant_part(model, made)
    exact |= work_out(part)
    spans: dict[str, range] = {}
    first = 0
    for name in part.graph.initializers:
        if given[name].dtype == np.float32 and given[name].ndim > 1:
            last = first + len(_rows(given[name]))
            spans[name], first = range(first, last), last
            numbers = np.array(spans[name], np.float32).reshape(*given[name].shape[:-1], 1)
            set_initializer(part.graph, name, np.broadcast_to(numbers, given[name].shape))
    for name, numbered in work_out(part).items():
        rows_N = _rows(numbered)[:, 0]
        found = {number: at for at, number in enumerate(rows_N.tolist())}
        own = {source: [found.get(number, -1) for number in span] for source, span in spans.items()}
        own = {source: rows for source, rows in own.items() if max(rows) >= 0}
        same = sum(map(len, own.values())) == len(rows_N) and all(
            np.array_equal(_rows(exact[name])[rows], _rows(given[source])) for source, rows in own.items()
        )
        # made otherwise (scaled, cut): told under the name of what is made
        origins[name] = {k: np.array(v) for k, v in own.items()} if same else {name: np.arange(len(rows_N))}
    return exact, origins


def _rows(array: NDArray[Number]) -> NDArray[Number]:
    return array.reshape(-1, array.shape[-1])


def _stored(
    name: str, numbers: LinearWeight, origins: Mapping[str, NDArray[np.int64]]
) -> dict[str, LinearWeight]:
    return {
        source: replace(numbers, q_NK=numbers.q_NK[rows], scale_NB=numbers.scale_NB[rows])
        for source, rows in origins.items()
    }


class _Writer:
    """Puts layers in 8 bits into a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.names = graph, Names(graph)
        self._tables: dict[str, tuple[ir.Value, ir.Value]] = {}

    def _constant(self, matrix: Matrix, part: str, array: NDArray[np.generic]) -> ir.Value:
        value = set_initializer(self.graph, self.names.fresh(f"{matrix.stem}.{part}"), array)
        value.meta[DERIVED] = True
        return value

    def _before(self, node: ir.Node, *new: ir.Node) -> ir.Value:
        """Insert nodes of one output each; gives the last one's."""
        for one in new:
            one.name = one.outputs[0].name = self.names.fresh(str(one.name))
        self.graph.insert_before(node, new)
        return new[-1].outputs[0]

    def looked_up(self, node: ir.Node, table: Matrix) -> None:
        """Rows and their steps, each looked up, and multiplied."""
        stem, positions = table.stem, node.inputs[1]
        if stem not in self._tables:
            levels = self._constant(table, "q", table.numbers.q_NK)
            self._tables[stem] = levels, self._constant(table, "steps", table.numbers.scale_NB)
        rows, steps = (
            ir.node("Gather", [held, positions], {"axis": 0}, name=f"{stem}.{part}")
            for held, part in zip(self._tables[stem], ("rows", "row_steps"), strict=True)
        )
        wide = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value}, name=f"{stem}.wide")
        product = ir.node("Mul", [wide.outputs[0], steps.outputs[0]], name=f"{stem}.restored")
        final, old = self._before(node, rows, steps, wide, product), node.outputs[0]
        final.type, final.shape = old.type, old.shape
        take_place(self.graph, node, final)

    def dynamic(self, node: ir.Node, layer: Apart) -> None:
        """In the layout of ONNX Runtime: directions × inputs × outputs."""
        inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
        for at, matrix in zip(weights_at(node), layer, strict=True):
            inputs[at] = self._constant(matrix, "q", matrix.levels_DNK.transpose(0, 2, 1))
            inputs.append(self._constant(matrix, "steps", matrix.scale_DN))
            inputs.append(self._constant(matrix, "zeros", np.zeros(matrix.scale_DN.shape, np.int8)))
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
        self.graph.insert_before(node, new)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.type, value.shape, name = old.type, old.shape, old.name
            old.replace_all_uses_with(value, replace_graph_outputs=True)
            value.name, old.name = name, None
        self.graph.remove(node, safe=True)

    def restored(self, node: ir.Node, layer: Apart) -> None:
        """Weights back in float before the layer."""
        for at, matrix in zip(weights_at(node), layer, strict=True):
            stem = matrix.stem
            levels = self._constant(matrix, "q", matrix.numbers.q_NK)
            steps = self._constant(matrix, "steps", matrix.numbers.scale_NB[:, 0])
            shape = self._constant(matrix, "shape", np.array(matrix.levels_DNK.shape))
            floats = ir.node("DequantizeLinear", [levels, steps], {"axis": 0}, name=f"{stem}.dequantize")
            shaped = ir.node("Reshape", [floats.outputs[0], shape], name=f"{stem}.shaped")
            node.replace_input_with(at, self._before(node, floats, shaped))
