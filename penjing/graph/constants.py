"""Values of tensors that depend on no input and no parameter, for index maps."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from penjing.graph.trace import Graph

# fmt: off
_NAMES = [
    "_to_copy", "add", "alias", "arange", "argsort", "cat", "clone", "contiguous", "detach", "detach_",
    "expand", "flatten", "flip", "floor_divide", "lift_fresh_copy", "mul", "permute", "remainder",
    "repeat", "reshape", "roll", "select", "slice", "squeeze", "stack", "sub", "to", "transpose",
    "unsqueeze", "view",
]
# fmt: on
PURE = {f"aten.{name}" for name in _NAMES}


class Constants:
    """Evaluates constant index tensors on demand; nothing that is written to in place counts as constant."""

    def __init__(self, graph: Graph) -> None:
        self._buffers = dict(graph.buffers)
        if graph.training is not None:
            self._buffers |= graph.training.buffers
        self._known: dict[fx.Node, Tensor | None] = {}

    def __call__(self, node: fx.Node) -> Tensor | None:
        """The value, or None when it is not constant."""
        if node not in self._known:
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        if any(_writes(user) for user in node.users):
            return None
        if node.op == "get_attr":
            value = self._buffers.get(str(node.target))
            return None if value is None else value.detach().cpu()
        if node.op != "call_function" or str(node.target).rsplit(".", 1)[0] not in PURE:
            return None
        inputs = {source: self(source) for source in node.all_input_nodes}
        if any(value is None for value in inputs.values()):
            return None
        args = fx.node.map_arg(node.args, lambda source: inputs[source])
        kwargs = fx.node.map_arg(node.kwargs, lambda source: inputs[source])
        with torch.no_grad():
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        return result if isinstance(result, Tensor) else None


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable) and str(node.target) != "aten.detach_.default"
