"""Whether networks take images with the channels last in memory, which CPUs convolve faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from penjing.batches import Batch, between, call_model, move
from penjing.graph.views import eval_view

_GATHERED = 8


def takes_channels_last(networks: Sequence[Any], inputs: Callable[[], Any]) -> bool:
    """Whether the first network has 2-d convolutions, all with right gradients (see `miscomputed`), and no
    network insists on the other order.

    Args:
        networks: The one that trains, whose memory order this changes, then its teachers; those that are no
            modules are not asked.
        inputs: Gives a batch's inputs.
    """
    trained = networks[0]
    if not any(isinstance(module, nn.Conv2d) for module in trained.modules()) or miscomputed(trained):
        return False
    put_channels_last_(trained)
    few = Batch(between(inputs(), 0, 2))
    usual = next(trained.parameters()).device
    for network in networks:
        if not isinstance(network, nn.Module):
            continue
        home = next((p.device for p in network.parameters()), usual)
        try:
            with torch.no_grad(), eval_view(network):
                call_model(network, move(few, home, channels_last=True).inputs)
        except (RuntimeError, TypeError):  # ``view`` of another order; all else is said in use
            return False
    return True


def miscomputed(model: nn.Module) -> str:
    """Name of a convolution whose gradient is wrong with the channels last, "" if there is none.

    oneDNN's AVX2 kernel for the weights of strided 1 × 1 convolutions gathers eight input channels at a time:
    with fewer it gives wrong gradients, and writes past its memory.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.in_channels >= _GATHERED:
            continue
        if set(module.kernel_size) == {1} and max(module.stride) > 1:
            return name or type(module).__name__
    return ""


def put_channels_last_(model: nn.Module) -> None:
    """Weights and buffers of four dimensions with the channels last in memory, in place.

    ``model.to(memory_format=…)`` would ask it of five dimensions, too, which is an error.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
