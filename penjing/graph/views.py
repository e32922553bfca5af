"""A model as it is looked at for a while: in eval mode, its outputs plain, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from penjing.graph.remembered import put_back

_GIVEN = (Tensor, int, float, str, torch.SymInt, torch.SymFloat, torch.SymBool, type(None))


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[set[str]]:
    """Outputs that no graph can give, beside those it can, are None for a while.

    Language models give out their keys and values in an object of their own, which only they read again.

    Yields:
        The kinds of what was left out, complete when the model has run.
    """
    left_out: set[str] = set()

    def strip(module: nn.Module, args: Any, output: Any) -> Any:
        leaves, spec = pytree.tree_flatten(output)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            return output  # torch.export says what it is
        left_out.update(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _GIVEN))
        return pytree.tree_unflatten([leaf if isinstance(leaf, _GIVEN) else None for leaf in leaves], spec)

    handle = model.register_forward_hook(strip)
    try:
        yield left_out
    finally:
        handle.remove()


@contextmanager
def eval_view(model: nn.Module) -> Iterator[set[str]]:
    """The model in eval mode for a while; every module's own flag, and what the forward writes, restored
    afterwards.

    Attention runs op by op: the fused op would hide its matmuls. An einsum of many operands contracts from
    left to right, as files of it do: an order that goes by their sizes would fix the batch.

    Yields:
        Names of the buffers that were written, complete when the view ends.
    """
    flags = [(module, module.training) for module in model.modules()]
    fastpath, by_size = torch.backends.mha.get_fastpath_enabled(), torch.backends.opt_einsum.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.opt_einsum.enabled = False
    model.eval()
    try:
        with put_back(model) as written:
            yield written
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.backends.opt_einsum.enabled = by_size
        for module, training in flags:
            module.training = training


class DropoutApart(TorchFunctionMode):
    """Keeps a dropout's input and output two values while tracing.

    In eval mode dropout returns its very input, and the tracer, which goes by object identity, would let
    later uses of the input read the dropout: right in eval mode, wrong once the graph trains.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "dropout" in getattr(func, "__name__", "") and args and isinstance(args[0], Tensor):
            args = (torch.ops.aten.alias.default(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))
