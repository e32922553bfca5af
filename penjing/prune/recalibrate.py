"""Batch-norm statistics after pruning: measured anew, or moved without changing the function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.batches import ask, check, unpack
from penjing.errors import DataError
from penjing.modes import eval_mode


def recalibrate(model: nn.Module, data: Iterable[Any], *, max_samples: int = 2048) -> nn.Module:
    """A copy of the model whose batch norms hold the statistics of ``data``; see `recalibrate_`."""
    model = copy.deepcopy(model)
    recalibrate_(model, data, max_samples=max_samples)
    return model


@torch.no_grad()
def recalibrate_(model: nn.Module, data: Iterable[Any], *, max_samples: int = 2048) -> int:
    """Replace the running statistics of every batch norm by plain averages over ``data``, in place.

    Only batch norms are put in training mode (dropout stays off, but for Keras models, which have one flag
    for all); all flags are given back.

    Args:
        model: A network, also a traced or a Keras one; one without batch norms is left alone.
        data: A re-iterable of batches; labels are not looked at.
        max_samples: Most samples used. A last batch of one is left out.

    Returns:
        Number of batch norms recalibrated.

    Raises:
        DataError: no data, NaN in it, or inputs that the network does not take.
    """
    found = [norms for find in _KINDS for module in model.modules() if (norms := find(module)) is not None]
    if not found:
        return 0
    count = largest = 0
    with eval_mode(model):
        try:
            for norms in found:
                norms.begin()
            for index, item in enumerate(data):
                batch = unpack(item)
                check(batch, index)
                largest = max(largest, batch.size)
                if batch.size == 1 < largest:
                    continue  # the rest of the data, which has no variance of its own
                for norms in found:
                    norms.momentum(1 / (index + 1))  # a cumulative average
                ask(model, batch.inputs, "model")
                count += batch.size
                if count >= max_samples:
                    break
        finally:
            for norms in found:
                norms.end()
    if count == 0:
        raise DataError("the data has no batches", remedy="Give some hundreds of samples of the training set")
    return sum(norms.count for norms in found)


@dataclass(frozen=True)
class _Norms:
    """Batch norms of one kind.

    Attributes:
        count: How many.
        begin: Puts them in training mode.
        momentum: Sets the share of the next batch in the running statistics.
        end: Gives back everything but the modules' training flags.
    """

    count: int
    begin: Callable[[], None]
    momentum: Callable[[float], None]
    end: Callable[[], None]


def _of_torch(module: nn.Module) -> _Norms | None:
    """A batch norm module with running statistics."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not module.track_running_stats:
        return None
    norm, own = module, module.momentum

    def begin() -> None:
        norm.reset_running_stats()
        norm.train()

    def set_momentum(value: float | None) -> None:
        norm.momentum = value

    return _Norms(1, begin, set_momentum, lambda: set_momentum(own))


def _of_graph(module: nn.Module) -> _Norms | None:
    """The batch norm ops of a traced network."""
    if not isinstance(module, fx.GraphModule):
        return None
    training, momentum = 5, 6  # positions among the op's arguments
    nodes = [
        node
        for node in module.graph.nodes
        if str(node.target) == "aten.batch_norm.default" and node.args[3] is not None
    ]
    if not nodes:
        return None
    own = [(node.args[training], node.args[momentum]) for node in nodes]

    def put(values: Iterable[tuple[Any, Any]]) -> None:
        for node, (flag, share) in zip(nodes, values, strict=True):
            node.update_arg(training, flag)
            node.update_arg(momentum, share)
        module.recompile()

    return _Norms(len(nodes), lambda: None, lambda value: put([(True, value)] * len(nodes)), lambda: put(own))


def _of_keras(module: nn.Module) -> _Norms | None:
    """The batch norm layers of a Keras model."""
    net: Any = getattr(module, "net", None)
    if not hasattr(module, "to_keras") or not hasattr(net, "_flatten_layers"):
        return None
    layers = [layer for layer in net._flatten_layers() if hasattr(layer, "moving_mean")]
    if not layers:
        return None
    own = [layer.momentum for layer in layers]

    def put(values: Iterable[float]) -> None:
        for layer, value in zip(layers, values, strict=True):
            layer.momentum = value

    def begin() -> None:
        module.training = True

    # Keras's momentum is the share of what was there before
    return _Norms(len(layers), begin, lambda value: put([1 - value] * len(layers)), lambda: put(own))


_KINDS: tuple[Callable[[nn.Module], _Norms | None], ...] = (_of_torch, _of_graph, _of_keras)


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
