"""A traced graph as a working ``nn.Module``."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import fx

from penjing.graph.trace import Graph
from penjing.graph.tree import Held, build_tree, held_tensors

# op → position of its training flag. Batch and instance norm follow only when they have running statistics.
TRAIN_FLAGS = {
    "aten.dropout.default": 2,
    "aten.dropout_.default": 2,
    "aten.feature_dropout.default": 2,
    "aten.feature_dropout_.default": 2,
    "aten.alpha_dropout.default": 2,
    "aten.alpha_dropout_.default": 2,
    "aten.feature_alpha_dropout.default": 2,
    "aten.feature_alpha_dropout_.default": 2,
    "aten.rrelu.default": 3,
    "aten.rrelu_.default": 3,
    "aten.batch_norm.default": 5,
    "aten.lstm.input": 6,
    "aten.gru.input": 6,
    "aten.rnn_tanh.input": 6,
    "aten.rnn_relu.input": 6,
}


class GraphModel(fx.GraphModule):
    """The network of a `Graph`, with parameters of its own.

    It is called like the original, has the original's ``state_dict`` names, trains (``train()`` and
    ``eval()`` switch
    dropout and batch-norm statistics inside the graph), can be deep-copied and traced again.

    Args:
        source: The traced network; its tensors are copied.
    """

    def __init__(self, source: Graph) -> None:
        self._assemble(source.held(), copy.deepcopy(source.module.graph))
        self.eval()

    def _assemble(self, tensors: tuple[Held, ...], graph: fx.Graph) -> None:
        root = build_tree(tensors, copy=True)
        super().__init__(root, graph, "GraphModel")
        for name, child in root.named_children():
            self.add_module(name, child)
        for name, param in root._parameters.items():
            self.register_parameter(name, param)
        for name, buffer in root._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in root._non_persistent_buffers_set)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin._assemble(tuple(held_tensors(self)), copy.deepcopy(self.graph))
        twin.train(self.training)
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        """Setting ``training``, by `train` or directly, switches dropout and batch norm in the graph."""
        super().__setattr__(name, value)
        if name == "training" and "_graph" in self.__dict__:
            self._switch(bool(value))

    def _switch(self, mode: bool) -> None:
        changed = False
        for node in self.graph.nodes:
            index = TRAIN_FLAGS.get(str(node.target)) if node.op == "call_function" else None
            if index is None or _keeps_flag(node, index):
                continue
            if bool(node.args[index]) != mode:
                node.update_arg(index, mode)
                changed = True
        if changed:
            self.recompile()


def _keeps_flag(node: fx.Node, index: int) -> bool:
    """Whether a norm has no running statistics, so that it always uses the batch's."""
    return len(node.args) <= index or (str(node.target) == "aten.batch_norm.default" and node.args[3] is None)
