"""Batch-norm statistics after pruning: measured anew, or moved without changing the function."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import DataError


def recalibrate(model: nn.Module, data: Iterable[Any], *, max_samples: int = 2048) -> nn.Module:
    """A copy of the model whose batch norms hold the statistics of ``data``; see `recalibrate_`."""
    model = copy.deepcopy(model)
    recalibrate_(model, data, max_samples=max_samples)
    return model


@torch.no_grad()
def recalibrate_(model: nn.Module, data: Iterable[Any], *, max_samples: int = 2048) -> int:
    """Replace the running statistics of every batch norm by plain averages over ``data``, in place.

    Only batch norms are put in training mode (dropout stays off); all flags are given back.

    Args:
        model: A network; one without batch norms is left alone.
        data: A re-iterable of batches; labels are not looked at.
        max_samples: Most samples used.

    Returns:
        Number of batch norms recalibrated.

    Raises:
        DataError: no data, or NaN in it.
    """
    from penjing.recover.batches import call_model, check, unpack

    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    flags = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    count = 0
    try:
        for index, item in enumerate(data):
            batch = unpack(item)
            check(batch, index)
            call_model(model, batch.inputs)
            count += batch.size
            if count >= max_samples:
                break
    finally:
        for module, training in flags:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if count == 0:
        raise DataError("the data has no batches", remedy="Give some hundreds of samples of the training set")
    return len(norms)


@torch.no_grad()
def rebase_(
    weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, eps: float, inputs: Sequence[Tensor]
) -> None:
    """Set running statistics to those of ``inputs`` and change scale and offset so that the function stays.

    ``γ (x - m) / √(v + ε) + β`` is the same map of x before and after. In training mode, where the
    statistics of the batch are used, the norm then also starts from that function.

    Args:
        weight_C: γ, changed in place.
        bias_C: β, changed in place.
        mean_C: Running mean m, changed in place.
        var_C: Running variance v, changed in place.
        eps: ε.
        inputs: Batches of what the norm reads, ``[N, C, …]``.
    """
    count = 0
    total = torch.zeros(len(mean_C), dtype=torch.float64)
    square = torch.zeros_like(total)
    for x in inputs:
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shifted = x.double() - mean_C.double().reshape([1, -1] + [1] * (x.dim() - 2))
        total += shifted.sum(dims)
        square += shifted.square().sum(dims)
        count += x.numel() // x.shape[1]
    gap = total / count
    var = square / count - gap.square()
    mean = mean_C.double() + gap
    old_scale = (var_C.double() + eps).sqrt()
    gain = weight_C.double() / old_scale
    bias_C.copy_(bias_C.double() + gain * gap)
    weight_C.copy_(gain * (var.clamp_min(0) + eps).sqrt())
    mean_C.copy_(mean)
    var_C.copy_(var.clamp_min(0))
