"""How strongly a network's output answers to an error in each channel of a layer.

An error ``δ`` in the output of a layer changes the network's output by about ``J δ``. Random signs ``v`` on
the output give ``E_v (vᵀ J)² = diag(Jᵀ J)`` (Hutchinson 1990), so one backward pass a batch measures it for
all layers, without labels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from penjing.graph import Graph


def output_gains(
    graph: Graph, nodes: Mapping[fx.Node, str], batches: Sequence[Sequence[Any]], generator: torch.Generator
) -> tuple[dict[str, Tensor], float]:
    """The squared gain from each channel of each layer to the network's output.

    Args:
        graph: The traced network.
        nodes: Calls of the layers whose channels are asked for, and the layer's name: convolutions
            ``[N, O, …]`` or linear layers ``[…, O]``.
        batches: The flat inputs of each batch, in the order of the graph's placeholders.
        generator: Draws the signs.

    Returns:
        For each layer float64 ``[O]``: how much a unit squared error at every position of a channel raises
        the output's squared error, mean over samples; and the output's total variance over the samples, the
        size that such a rise is to be compared with.
    """
    totals: dict[str, Tensor] = {}
    samples, sums, squares = 0, [], 0.0
    for batch in batches:
        tapped, outputs = _forward(graph, nodes, batch)
        called = [node for node in nodes if node in tapped]
        with torch.enable_grad():
            seen = projected(outputs, generator)
        tensors = [tapped[node] for node in called]
        grads: tuple[Tensor | None, ...] = ()
        if tensors:  # there are none where all weights are computed
            grads = torch.autograd.grad(seen, tensors, allow_unused=True)
        for node, grad in zip(called, grads, strict=True):
            if grad is None:  # nothing of it reaches the output
                continue
            channels = 1 if "conv" in str(node.target) else grad.dim() - 1
            dims = [dim for dim in range(grad.dim()) if dim != channels]
            name = nodes[node]
            totals[name] = totals.get(name, torch.zeros(())) + grad.double().square().sum(dims)
        samples += len(outputs[0])
        flat = torch.cat([y.detach().double().flatten(1) for y in outputs], 1)
        sums.append(flat.sum(0))
        squares += float(flat.square().sum())
    mean = torch.stack(sums).sum(0) / samples
    variance = squares / samples - float(mean.square().sum())
    return {name: total / samples for name, total in totals.items()}, max(variance, 1e-30)


def projected(outputs: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """The outputs' sum under random signs ``v``, whose gradients are ``vᵀ J``."""
    signs = [torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1 for y in outputs]
    return torch.stack([(y * v).sum() for y, v in zip(outputs, signs, strict=True)]).sum()


def _forward(
    graph: Graph, nodes: Collection[fx.Node], batch: Sequence[Any]
) -> tuple[dict[fx.Node, Tensor], list[Tensor]]:
    """The nodes' values, with a way back from the outputs to them."""
    tapped: dict[fx.Node, Tensor] = {}

    class Tapping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n not in nodes:
                return value
            value = value if value.requires_grad else value.detach().requires_grad_()
            tapped[n] = value
            return value.clone()  # ops in place then leave the tapped value alone

    with torch.enable_grad():
        result = Tapping(graph.module).run(*batch, enable_io_processing=False)
    outputs = [y for y in pytree.tree_leaves(result) if isinstance(y, Tensor) and y.is_floating_point()]
    return tapped, outputs
