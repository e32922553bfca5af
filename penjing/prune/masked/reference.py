"""The interpreter that carries masks over the original graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from penjing.errors import PruneError
from penjing.graph import Axis, Coupling, Graph, Product, couple, is_kept_whole, leaves, positions, trace
from penjing.graph.branches import Branch, chosen, find_branches
from penjing.graph.inputs import flat_inputs
from penjing.graph.remembered import own_copies
from penjing.prune.compare import relative_error, run
from penjing.prune.masked.restrict import RULES, Kept, Mask, Restricted
from penjing.prune.plan import Plan
from penjing.prune.ranges import Positions
from penjing.prune.result import PruneResult

_LEAK = 1e-4  # relative

_UNWRITTEN = ("aten.empty", "aten.new_empty")
"""Ops whose values are whatever memory held, until the forward has written them."""


class MaskedInterpreter(fx.Interpreter):
    """Runs the original graph as if the removed slots were not there, without removing anything.

    Args:
        graph: The traced original.
        coupling: Its axes: where the slots are in every value.
        kept: Kept slots by leaf id.
        off: Residual branches that are gone.

    Attributes:
        leaks: Largest relative change across the batch of values that were left out of a statistic. Removed
            slots have zero parameters, so nothing of the input can reach them; if something does, the axes
            are wrong.
    """

    def __init__(
        self,
        graph: Graph,
        coupling: Coupling,
        kept: Mapping[int, Positions],
        off: Iterable[Branch] = (),
    ) -> None:
        super().__init__(graph.module)
        self.coupling = coupling
        self.kept = kept
        self.off = {branch.total: branch.skip for branch in off}
        self.mixed = {g.leaf for g in coupling.groups if "softmax" in g.marks} | _rows(graph, coupling)
        self.leaks = 0.0
        self.batch = 0
        self.masked = dict(_masked_tensors(graph, coupling, kept))

    def run(self, *args: Any, **options: Any) -> Any:
        """Interpret; the batch size is remembered to look for leaks."""
        first = next((a for a in args if isinstance(a, Tensor) and a.ndim), None)
        self.batch = 0 if first is None else first.shape[0]
        return super().run(*args, **options)

    def run_node(self, node: fx.Node) -> Any:
        """One node: masked parameters, restricted statistics, kept positions of the outputs."""
        if node.op == "get_attr" and str(node.target) in self.masked:
            return self.masked[str(node.target)]
        if node.name in self.off:
            skip = next(source for source in node.all_input_nodes if source.name == self.off[node.name])
            return self._mend(node, self.env[skip].clone())
        if node.op == "output":
            return fx.map_arg(node.args[0], self._kept_output)
        rule = RULES.get(str(node.target).removeprefix("aten.")) if node.op == "call_function" else None
        if rule is None or not self._touched(node):
            result = super().run_node(node)
            if str(node.target).startswith(_UNWRITTEN):  # 0 × NaN that memory held is NaN
                result.zero_()
        else:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            result = rule(Restricted(node, args, kwargs, self.masks, self._watch))
        return self._mend(node, result)

    def masks(self, value: Any, output: int = 0, tensor: Tensor | None = None) -> tuple[Mask, ...]:
        """Mask of every dim of a node's value; of the one being computed it has to be given."""
        if not isinstance(value, fx.Node) or not self.coupling.values.get(value.name):
            return ()
        tensor = self.env.get(value) if tensor is None else tensor
        if isinstance(tensor, tuple | list):
            tensor = tensor[output]
        axes = self.coupling.values[value.name][output]
        if not isinstance(tensor, Tensor) or tensor.ndim != len(axes):
            return (None,) * len(axes)
        return tuple(self._mask(axis, size) for axis, size in zip(axes, tensor.shape, strict=True))

    def _mask(self, axis: Axis, size: int) -> Mask:
        """True at the kept positions; a dim led by the batch repeats its pattern for every sample."""
        if is_kept_whole(axis, self.kept):
            return None
        mask = np.zeros(axis.size, dtype=bool)
        mask[positions(axis, self.kept)] = True
        if axis.size != size:
            if not isinstance(axis, Product) or not is_kept_whole(axis.factors[0], self.kept):
                raise PruneError(
                    f"an axis of {axis.size} meets a value of {size}", remedy="Report this model"
                )
            period = axis.size // axis.factors[0].size
            mask = np.tile(mask[:period], size // period)
        watched = self.mixed.isdisjoint(leaf.id for leaf in leaves(axis))
        return Kept(torch.from_numpy(mask), watched)

    def _touched(self, node: fx.Node) -> bool:
        nodes = (node, *node.all_input_nodes)
        values = (axes for n in nodes for axes in self.coupling.values.get(n.name, ()))
        return any(not is_kept_whole(axis, self.kept) for axes in values for axis in axes)

    def _kept_output(self, node: fx.Node) -> Any:
        value = self.env[node]
        if isinstance(value, Tensor):
            for dim, mask in enumerate(self.masks(node)):
                if mask is not None:
                    value = value.index_select(dim, mask.index)
        return value

    def _watch(self, node: fx.Node, left_out: Tensor) -> None:
        if self.batch < 2 or left_out.ndim == 0 or left_out.shape[0] != self.batch or not left_out.numel():
            return
        left_out = left_out.to(torch.complex128 if left_out.is_complex() else torch.float64)
        change = float((left_out - left_out[:1]).abs().max())
        self.leaks = max(self.leaks, change / max(1.0, float(left_out.abs().max())))

    def _mend(self, node: fx.Node, result: Any) -> Any:
        """Zeros for what is not finite at removed positions only (a norm divided by the norm of a removed
        slot).
        """
        if not isinstance(result, Tensor) or not result.is_floating_point() or _finite(result):
            return result
        for dim, mask in enumerate(self.masks(node, tensor=result)):
            if mask is not None:
                shape = [1] * result.ndim
                shape[dim] = -1
                removed = ~mask.flags.view(shape) & ~result.isfinite()
                result = result.masked_fill(removed, 0.0)
        return result


def _finite(value: Tensor) -> bool:
    """Whether every element is; a finite sum says so in one pass (another may only have overflown)."""
    return bool(value.detach().sum().isfinite()) or bool(value.isfinite().all())


def _rows(graph: Graph, coupling: Coupling) -> set[int]:
    """Leaves along the rows of a product: a removed query still reads what is kept, it is only not read."""
    products = ("aten.matmul", "aten.bmm", "aten.scaled_dot_product_attention")
    nodes = (n for n in graph.module.graph.nodes if str(n.target).rpartition(".")[0] in products)
    outputs = [coupling.values[node.name][0] for node in nodes if node.name in coupling.values]
    return {leaf.id for axes in outputs if len(axes) > 2 for leaf in leaves(axes[-2])}


def _masked_tensors(
    graph: Graph, coupling: Coupling, kept: Mapping[int, Positions]
) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with zeros at removed positions; an index is no weight and stays what it is."""
    for name, tensor in (*graph.params.items(), *graph.buffers.items()):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        value = tensor.detach()
        for dim, axis in enumerate(coupling.tensors.get(name, ())):
            if not is_kept_whole(axis, kept):
                gone = np.setdiff1d(np.arange(axis.size), positions(axis, kept))
                value = value.index_fill(dim, torch.from_numpy(gone), 0)
        if value is not tensor and name in coupling.tensors:
            yield name, value


def masked_output(
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[int, Positions],
    inputs: Any,
    off: Iterable[Branch] = (),
) -> tuple[Any, float]:
    """Reference output for some kept slots, and the largest leak (0 when removed slots carry nothing of the
    input).

    Args:
        graph: ``trace(model, …)`` of the original.
        coupling: ``couple(graph)``.
        kept: Kept slots by leaf id.
        inputs: A tensor, a tuple or a dict.
        off: Residual branches that are gone.
    """
    interpreter = MaskedInterpreter(graph, coupling, kept, off)
    flat = flat_inputs(graph.module, own_copies(inputs))
    with torch.no_grad():
        return interpreter.run(*flat), interpreter.leaks


def masked_equivalence(model: nn.Module, pruned: PruneResult | Plan, inputs: Any) -> float:
    """Relative error between a pruned model and the masked original on the same inputs.

    Args:
        model: The original.
        pruned: What `prune` or `apply` gave, or a plan (applied here).
        inputs: A tensor, a tuple or a dict; a batch of two or more also looks for leaks.

    Returns:
        Largest |pruned − reference| over largest |reference|; infinite if removed slots carry something of
        the input.
    """
    from penjing.prune.apply import apply
    from penjing.prune.slots import slots_of

    result = apply(model, pruned, inputs) if isinstance(pruned, Plan) else pruned
    graph = trace(model, inputs, by_example=True)
    coupling = couple(graph, prune_outputs=True)
    off = chosen(find_branches(graph), tuple(result.plan.branches)) if result.plan.branches else ()
    expected, leak = masked_output(graph, coupling, slots_of(result.plan, coupling), inputs, off)
    if leak > _LEAK:
        return float("inf")
    return relative_error(run(result.model, inputs), expected)
