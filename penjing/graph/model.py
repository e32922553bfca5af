"""A traced graph as a working ``nn.Module``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from penjing.graph.trace import CUMULATIVE, Graph
from penjing.graph.tree import Held, build_tree, held_tensors

# keys of ``meta``
_COUNTING, _BEFORE, _SIZES = "norms that count", "statistics before", "traced sizes"
_FIXED = "why the batch is fixed"
BATCH_NORM = "aten.batch_norm.default"
_MEAN, _TRAINING, _MOMENTUM = 3, 5, 6  # positions of its arguments
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
    BATCH_NORM: _TRAINING,
    "aten.lstm.input": 6,
    "aten.gru.input": 6,
    "aten.rnn_tanh.input": 6,
    "aten.rnn_relu.input": 6,
}


class GraphModel(fx.GraphModule):
    """The network of a `Graph`, with parameters of its own.

    It is called like the original, has the original's ``state_dict`` names, trains (``train()`` and
    ``eval()`` switch dropout and batch-norm statistics inside the graph), can be deep-copied and traced
    again.

    What it knows of its batch norms is in ``meta``, where no module or parameter of the original can be:
    under `CUMULATIVE` the names of the running means of those that average over all batches so far.

    Args:
        source: The traced network; its tensors are copied.
    """

    def __init__(self, source: Graph) -> None:
        graph = copy.deepcopy(source.module.graph)
        _assemble(self, source.held(), graph, source.cumulative_norms, source.fixed_batch)
        self.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        # of tensors that something else is to stand for (sliced ones), that and no copy
        held = tuple(replace(h, tensor=memo.get(id(h.tensor), h.tensor)) for h in held_tensors(self))
        _assemble(twin, held, copy.deepcopy(self.graph), self.meta[CUMULATIVE], self.meta[_FIXED])
        twin.train(self.training)
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        """Setting ``training``, by `train` or directly, switches dropout and batch norm in the graph."""
        super().__setattr__(name, value)
        if name == "training" and "_graph" in self.__dict__:
            _switch(self, bool(value))


# Functions and not methods: a module or parameter of the original may be called so.


def _assemble(
    model: GraphModel, tensors: tuple[Held, ...], graph: fx.Graph, cumulative: frozenset[str], fixed: str
) -> None:
    root = build_tree(tensors, copy=True)
    fx.GraphModule.__init__(model, root, graph, "GraphModel")
    for name, child in root.named_children():
        model.add_module(name, child)
    for name, param in root._parameters.items():
        model.register_parameter(name, param)
    for name, buffer in root._buffers.items():
        model.register_buffer(name, buffer, persistent=name not in root._non_persistent_buffers_set)
    model.meta[CUMULATIVE], model.meta[_FIXED] = cumulative, fixed
    model.meta[_COUNTING] = tuple(_norms(graph, {item.name for item in tensors}))
    model.meta[_BEFORE] = []
    model.meta[_SIZES] = {str(node.target): _sizes(node) for node in graph.find_nodes(op="placeholder")}
    model.register_forward_pre_hook(_see_sizes, with_kwargs=True)
    model.register_forward_pre_hook(_count_batch)
    model.register_forward_hook(_average_statistics)


def _switch(model: GraphModel, mode: bool) -> None:
    changed = False
    for node in model.graph.nodes:
        index = TRAIN_FLAGS.get(str(node.target)) if node.op == "call_function" else None
        if index is None or _keeps_flag(node, index) or bool(node.args[index]) == mode:
            continue
        node.update_arg(index, mode)
        if str(node.target) == BATCH_NORM and node.args[_MEAN].target in model.meta[CUMULATIVE]:
            node.update_arg(_MOMENTUM, 1.0)  # leaves the batch's statistics, averaged afterwards
        changed = True
    if changed:
        model.recompile()


def _norms(graph: fx.Graph, names: Set[str]) -> Iterator[str]:
    """Names, up to the last dot, of the batch norms that count their batches, once for each use."""
    for node in graph.nodes:
        if str(node.target) == BATCH_NORM and isinstance(node.args[_MEAN], fx.Node):
            mean = str(node.args[_MEAN].target)
            prefix = mean.removesuffix("running_mean")
            if mean != prefix and prefix + "num_batches_tracked" in names:
                yield prefix


def _sizes(node: fx.Node) -> tuple[int | None, ...]:
    """An input's sizes; None for one that may vary."""
    example = node.meta.get("penjing_example", {}).get("shape", ())  # as a stored program tells it
    shape = value.shape if isinstance(value := node.meta.get("val"), Tensor) else example
    return tuple(size if isinstance(size, int) else None for size in shape)


def _see_sizes(model: GraphModel, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Warn of other sizes than the traced ones: what the forward made of those is in the graph."""
    given = {**dict(zip(model.meta[_SIZES], pytree.tree_leaves(args), strict=False)), **kwargs}
    for name, traced in model.meta[_SIZES].items():
        sizes = given[name].shape if isinstance(given.get(name), Tensor) else traced
        if any(was is not None and now != was for now, was in zip(sizes, traced, strict=False)):
            known = ", ".join("batch" if size is None else str(size) for size in traced)
            why = f" ({model.meta[_FIXED]})" if model.meta[_FIXED] else ""
            warnings.warn(
                f"the input {name} has sizes {list(sizes)}, and the network was traced with [{known}]{why}: "
                "where its forward computes with sizes (to resize, to make positions) it fails or is wrong; "
                "trace, prune or save it with inputs of these sizes",
                stacklevel=2,
            )


def _count_batch(model: GraphModel, args: Any) -> None:
    """Advance the counters of batches, and remember the statistics that will be averaged."""
    if not model.training:
        return
    for prefix in model.meta[_COUNTING]:
        model.get_buffer(prefix + "num_batches_tracked").add_(1)
    for mean in sorted(model.meta[CUMULATIVE]):
        for name in (mean, mean.removesuffix("running_mean") + "running_var"):
            buffer = model.get_buffer(name)
            model.meta[_BEFORE].append((buffer, buffer.clone()))


def _average_statistics(model: GraphModel, args: Any, output: Any) -> None:
    """Momentum None: every batch so far weighs the same."""
    counts = [
        model.get_buffer(mean.removesuffix("running_mean") + "num_batches_tracked")
        for mean in sorted(model.meta[CUMULATIVE])
        for _ in range(2)
    ]
    for (buffer, old), count in zip(model.meta[_BEFORE], counts, strict=False):
        buffer.copy_(torch.lerp(old, buffer, 1.0 / float(count)))
    model.meta[_BEFORE].clear()


def _keeps_flag(node: fx.Node, index: int) -> bool:
    """Whether a norm has no running statistics, so that it always uses the batch's."""
    return len(node.args) <= index or (str(node.target) == BATCH_NORM and node.args[_MEAN] is None)
