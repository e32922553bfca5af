"""Small questions asked of an ONNX graph (`onnx_ir`)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.errors import QuantizeError

Item = TypeVar("Item", bound=Hashable)

_DRAWS = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
)
_SHAPE_OPS = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "NonZero", "Constant"})


class Classes(Generic[Item]):
    """What must go together: disjoint sets, joined pair by pair."""

    def __init__(self) -> None:
        self._parent: dict[Item, Item] = {}

    def root(self, item: Item) -> Item:
        """The member that stands for all of the item's class."""
        self._parent.setdefault(item, item)
        while (parent := self._parent[item]) != item:
            self._parent[item] = self._parent[parent]
            item = self._parent[item]
        return item

    def join(self, one: Item, other: Item) -> None:
        """Make one class of two."""
        self._parent[self.root(one)] = self.root(other)


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The numbers behind a value that is an initializer, else None."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return np.asarray(value.const_value.numpy())


def is_made_of_constants(value: ir.Value | None) -> bool:
    """Whether a value is an initializer or computed from initializers alone."""
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        if current is None or current.is_graph_input():
            return False
        maker = current.producer()
        if maker is None and not current.is_initializer():
            return False
        if maker is not None and maker not in seen:
            if maker.op_type in _DRAWS or _has_body(maker):
                return False
            seen.add(maker)
            waiting.extend(source for source in maker.inputs if source is not None)
    return True


def _has_body(node: ir.Node) -> bool:
    """Whether it is a loop or a branch, whose body reads what it likes."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def weight_of(node: ir.Node) -> NDArray[np.float32]:
    """The constant weight of a Conv, Gemm or MatMul, as stored."""
    array = constant(node.inputs[1])
    if array is None:
        raise QuantizeError("its weight is not constant", layer=layer_name(node), remedy="Add it to ignore")
    return array.astype(np.float32, copy=False)


def bias_of(node: ir.Node) -> NDArray[np.float32] | None:
    """The constant bias of a Conv or Gemm, or None where there is none."""
    array = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return None if array is None else array.astype(np.float32, copy=False).reshape(-1)


def weight_axis(node: ir.Node) -> int:
    """The weight's output channel axis: 0 of OIHW, the N of Gemm's and MatMul's KN."""
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def ints_attribute(node: ir.Node, name: str, default: list[int]) -> list[int]:
    """An attribute that is a list of integers."""
    attribute = node.attributes.get(name)
    return default if attribute is None else [int(i) for i in attribute.as_ints()]


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def layer_name(node: ir.Node) -> str:
    """The user's name for a node: its weight's name without the last part, or the module it came from."""
    weight = node.inputs[1] if node.op_type in {"Conv", "Gemm", "MatMul"} and len(node.inputs) > 1 else None
    if weight is not None and weight.is_initializer() and weight.name:
        for end in (".weight", "/kernel", ".kernel", "_weight"):
            if weight.name.endswith(end):
                return weight.name.removesuffix(end)
    return node.metadata_props.get("layer") or node.name or (node.outputs[0].name or node.op_type)


def upper_bound(node: ir.Node) -> float | None:
    """The constant upper bound of a Clip; None where it has none, and for other ops."""
    bound = constant(node.inputs[2]) if node.op_type == "Clip" and len(node.inputs) > 2 else None
    return None if bound is None else float(bound)


def name_of(value: ir.Value) -> str:
    """The value's name; a graph that was loaded always has one."""
    if value.name is None:
        raise QuantizeError(
            "the graph has a value without a name", remedy="Save the model with onnx and try again"
        )
    return value.name


def is_float(value: ir.Value) -> bool:
    """Whether the value is a float32 tensor (an unknown type counts as one)."""
    return value.dtype in (ir.DataType.FLOAT, None)


def consumers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read the value, once per use."""
    return [use.node for use in value.uses()]


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The single node that reads the value, when nothing else does and it is not an output."""
    found = consumers(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def float_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes that compute float values (not shapes, not constants)."""
    for node in graph:
        if node.op_type not in _SHAPE_OPS and any(is_float(out) for out in node.outputs):
            yield node


class Names:
    """Names for new values and constants of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken: set[str | None] = {value.name for value in [*graph.inputs, *graph.initializers.values()]}
        for node in graph.all_nodes():
            self._taken |= {value.name for value in [*node.inputs, *node.outputs] if value is not None}

    def fresh(self, wish: str) -> str:
        """The name wished for, with underscores behind it where the graph has that one."""
        while wish in self._taken:
            wish += "_"
        self._taken.add(wish)
        return wish


def set_initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Make an initializer of this name hold the array; an existing one of the name is changed."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    if name in graph.initializers:
        value = graph.initializers[name]
        value.const_value = tensor
        value.dtype, value.shape = tensor.dtype, ir.Shape(array.shape)
        return value
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def take_place(graph: ir.Graph, node: ir.Node, by: ir.Value) -> None:
    """Remove a one-output node; ``by`` takes its output's readers and name."""
    out = node.outputs[0]
    out.replace_all_uses_with(by, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    by.name, out.name = out.name, None


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers that nothing reads any more."""
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[name]
