"""Less dropout for a smaller network: it has fewer units to spare.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"
(arXiv:1506.02626), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def dropout_at(model: nn.Module, p: float | None) -> Iterator[None]:
    """Train with this dropout probability; the model's own comes back at the end. None changes nothing.

    Args:
        model: Its dropout modules, and the dropout ops of a traced graph, are set where they are active.
        p: Probability of dropping, 0 to 1.
    """
    modules = [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    graphs = [m for m in model.modules() if isinstance(m, fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.graph.nodes if _drops(node)]
    if p is None or not (modules or nodes):
        yield
        return
    own = [m.p for m in modules], [node.args[1] for node in nodes]
    try:
        for module in modules:
            module.p = p
        for node in nodes:
            node.update_arg(1, p)
        _recompile(graphs)
        yield
    finally:
        for module, value in zip(modules, own[0], strict=True):
            module.p = value
        for node, value in zip(nodes, own[1], strict=True):
            node.update_arg(1, value)
        _recompile(graphs)


def _drops(node: fx.Node) -> bool:
    return node.op == "call_function" and "dropout" in str(node.target) and bool(node.args[1])


def _recompile(graphs: list[fx.GraphModule]) -> None:
    for graph in graphs:
        graph.recompile()
