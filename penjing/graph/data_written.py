"""Weights that a forward changes through ``.data``, made visible to the tracer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from penjing.graph.source import place

_SETTLED = 1e-4
"""What rounding may change, relative to the largest weight."""


class DataFollowed(TorchFunctionMode):
    """Follows ``weight.data = …`` and what is written into ``weight.data``, which the tracer does not see.

    Networks for EEG bound the norms of their weights so, in the forward itself. Read through ``.data`` a
    weight is its own values without a history, and to give it others is to copy them in.

    Attributes:
        at: ``" at folder/file.py:line"`` of the last tensor for which no copy can stand, or "".
        read_at: The same of the weight that was last read or written so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at = self.read_at = ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == Tensor.data.__get__ and isinstance(args[0], nn.Parameter):  # type: ignore[attr-defined]
            self.read_at = f" at {place(sys._getframe(1))}"
            return args[0].detach()
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            weight, value = args
            if isinstance(weight, nn.Parameter) and (weight.shape, weight.dtype) == (
                value.shape,
                value.dtype,
            ):
                self.read_at = f" at {place(sys._getframe(1))}"
                weight.detach().copy_(value.detach())
                return None
            self.at = f" at {place(sys._getframe(1))}"
        return func(*args, **(kwargs or {}))


def settles(model: nn.Module, call: Callable[[], Any]) -> bool:
    """Whether a second call leaves the weights as the first one left them; they are put back afterwards.

    A bound on norms does; a weight that shrinks at every call has no values that a plan could slice.
    """
    held = [(param, param.data, param.detach().clone()) for param in model.parameters()]
    try:
        with torch.no_grad():
            call()
            once = [param.detach().clone() for param, *_ in held]
            call()
            return all(
                torch.allclose(param, before, rtol=_SETTLED, atol=_SETTLED * float(before.abs().max()))
                for (param, *_), before in zip(held, once, strict=True)
                if before.numel()
            )
    finally:
        for param, data, values in held:
            param.data = data
            with torch.no_grad():
                param.copy_(values)
