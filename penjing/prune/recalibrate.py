"""Batch-norm statistics after pruning: measured anew, or moved without changing the function."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from penjing.batches import ask, check, unpack
from penjing.errors import DataError
from penjing.graph.inputs import required_inputs
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
    names = required_inputs(model)
    with eval_mode(model):
        try:
            for norms in found:
                norms.begin()
            for index, item in enumerate(data):
                batch = unpack(item, names)
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
    nodes = _norm_nodes(module)
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


class _Heard:
    """Mean and variance of what one norm reads, in float64 about its running mean; memory for one batch."""

    def __init__(self, mean_C: Tensor) -> None:
        self.origin = mean_C.double()
        self.total, self.square = torch.zeros_like(self.origin), torch.zeros_like(self.origin)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """One batch ``[N, C, …]``."""
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shifted = x.double() - self.origin.reshape([1, -1] + [1] * (x.dim() - 2))
        self.total += shifted.sum(dims)
        self.square += shifted.square().sum(dims)
        self.count += x.numel() // x.shape[1]

    def move(self, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, eps: float) -> None:
        """As `rebase_` says."""
        gap = self.total / self.count
        var = (self.square / self.count - gap.square()).clamp_min(0)
        gain = weight_C.double() / (var_C.double() + eps).sqrt()
        bias_C.copy_(bias_C.double() + gain * gap)
        weight_C.copy_(gain * (var + eps).sqrt())
        mean_C.copy_(self.origin + gap)
        var_C.copy_(var)


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
    heard = _Heard(mean_C)
    for x in inputs:
        heard.add(x)
    heard.move(weight_C, bias_C, mean_C, var_C, eps)


@dataclass(frozen=True)
class _Affine:
    """The tensors of a norm that has all of them, and what it has read so far."""

    weight_C: Tensor
    bias_C: Tensor
    mean_C: Tensor
    var_C: Tensor
    eps: float
    heard: _Heard


@torch.no_grad()
def rebase_norms_(model: nn.Module, data: Iterable[Any], *, max_samples: int = 2048) -> int:
    """`rebase_` every batch norm of a network to what it reads for ``data``; the network's function stays.

    Left alone are norms without scale and offset, frozen ones, those that share tensors with another, and
    those of Keras models.

    Args:
        model: A network, also a traced one; changed in place.
        data: Batches of inputs, as training will give them.
        max_samples: Most samples used.

    Returns:
        Number of batch norms that were moved.
    """
    found: dict[int, _Affine] = {}

    def hear(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> None:
        tensors = (weight, bias, mean, var)
        if any(one is None for one in tensors) or not (weight.requires_grad and bias.requires_grad):
            return
        norm = found.setdefault(id(mean), _Affine(weight, bias, mean, var, eps, _Heard(mean)))
        norm.heard.add(x)

    with eval_mode(model), ExitStack() as stack:
        ends = [
            end
            for module in model.modules()
            for overhear in (_overhear_torch, _overhear_graph)
            if (end := overhear(module, hear)) is not None
        ]
        if not ends:
            return 0
        for end in ends:
            stack.callback(end)
        count, names = 0, required_inputs(model)
        for index, item in enumerate(data):
            batch = unpack(item, names)
            check(batch, index)
            ask(model, batch.inputs, "model")
            count += batch.size
            if count >= max_samples:
                break
    times = Counter(tensor.data_ptr() for norm in found.values() for tensor in (norm.weight_C, norm.bias_C))
    moved = 0
    for norm in found.values():
        if norm.heard.count and times[norm.weight_C.data_ptr()] == times[norm.bias_C.data_ptr()] == 1:
            norm.heard.move(norm.weight_C, norm.bias_C, norm.mean_C, norm.var_C, norm.eps)
            moved += 1
    return moved


_Hear = Callable[[Tensor, Any, Any, Any, Any, float], None]


def _overhear_torch(module: nn.Module, hear: _Hear) -> Callable[[], None] | None:
    """Let a batch norm module tell what it reads; what ends that, or None for other modules."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return None

    def tell(norm: nn.modules.batchnorm._BatchNorm, given: tuple[Tensor, ...]) -> None:
        hear(given[0], norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)

    return module.register_forward_pre_hook(tell).remove


def _overhear_graph(module: nn.Module, hear: _Hear) -> Callable[[], None] | None:
    """Let the batch norm ops of a traced network tell what they read; what ends that, or None without any."""
    if not isinstance(module, fx.GraphModule):
        return None
    nodes = _norm_nodes(module)
    if not nodes:
        return None
    targets = [node.target for node in nodes]

    def tell(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Tensor:
        hear(x, weight, bias, mean, var, rest[2])
        out: Tensor = torch.ops.aten.batch_norm.default(x, weight, bias, mean, var, *rest)
        return out

    def put(values: Iterable[Any]) -> None:
        for node, target in zip(nodes, values, strict=True):
            node.target = target
        module.recompile()

    put([tell] * len(nodes))
    return lambda: put(targets)


def _norm_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """Batch norm ops with running statistics."""
    return [
        node
        for node in module.graph.nodes
        if str(node.target) == "aten.batch_norm.default" and node.args[3] is not None
    ]
