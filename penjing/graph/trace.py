"""From a user's ``nn.Module`` to a graph of ATen ops with shapes, parameter names and source lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn


@dataclass(frozen=True, eq=False)
class Graph:
    """A traced network.

    Attributes:
        module: The ATen graph, callable with the original signature; get_attr targets are the original dotted
            names (a shared parameter goes by its first name). It shares storage with the traced model.
        params: Every parameter by its first name, unused ones too.
        buffers: Every buffer and lifted constant, by name.
        aliases: Other names of shared parameters and buffers → first name.
        notes: What the reader should know, e.g. that the batch size is fixed.
    """

    module: fx.GraphModule
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def shape(self, node: fx.Node) -> tuple[Any, ...]:
        """Shape of a node with one tensor output; symbolic dims are SymInt."""
        return tuple(node.meta["val"].shape)

    def source(self, node: fx.Node) -> str:
        """``"file.py:line"`` of the user's code that made this node, or "" when unknown."""
        raise NotImplementedError


def trace(model: nn.Module, example_inputs: Any, *, dynamic_batch: bool = True) -> Graph:
    """Trace a model."""
    raise NotImplementedError
