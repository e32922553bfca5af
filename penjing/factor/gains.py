"""How far the network's output follows an error in a layer's.

`penjing.prune.output_gain` asks the same for each channel of a traced graph; here a module is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.batches import Inputs, between, call_model, count_samples
from penjing.factor.pair import Layer
from penjing.graph.views import eval_view
from penjing.prune.output_gain import projected

_SAMPLES = 256
_SIGNS = 4  # draws for each batch


def output_gains(
    model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Inputs], generator: torch.Generator
) -> dict[str, float]:
    """Squared error of the outputs, relative to their variance, for a layer's error as large as its output.

    Random signs on the outputs give the mean of ``(vᵀ J δ)²`` in one backward pass (Hutchinson 1990), for
    errors that lie as the layer's own values do.

    Args:
        model: The network.
        layers: By name.
        batches: Some samples of the first ones are taken.
        generator: Draws the signs.

    Returns:
        For each layer that reaches the outputs.
    """
    totals: dict[str, float] = {}
    sums: list[Tensor] = []
    squares = 0.0
    samples = 0
    for batch in batches:
        batch = between(batch, 0, min(count_samples(batch), _SAMPLES // 4))
        tapped, outputs = _forward(model, layers, batch)
        if not tapped or not outputs:
            break
        values = [value for _, value in tapped]
        for draw in range(_SIGNS):
            seen = projected(outputs, generator)
            more = draw + 1 < _SIGNS
            grads = torch.autograd.grad(seen, values, retain_graph=more, allow_unused=True)
            for (name, value), grad in zip(tapped, grads, strict=True):
                if grad is not None:
                    totals[name] = totals.get(name, 0.0) + _moved(layers[name], value, grad) / _SIGNS
        flat = torch.cat([y.detach().double().flatten(1) for y in outputs], 1)
        sums.append(flat.sum(0))
        squares += float(flat.square().sum())
        samples += count_samples(batch)
        if samples >= _SAMPLES:
            break
    if not samples:
        return {}
    variance = squares - float(torch.stack(sums).sum(0).square().sum()) / samples
    return {name: total / max(variance, 1e-30) for name, total in totals.items()}


def _moved(layer: Layer, value: Tensor, grad: Tensor) -> float:
    """Squared change of the projected outputs by independent errors as large as each channel's values."""
    channels = value.dim() - 1 if isinstance(layer, nn.Linear) else value.dim() - len(layer.kernel_size) - 1
    dims = [dim for dim in range(value.dim()) if dim != channels]
    power = value.detach().double().square().mean(dims)
    return float((grad.double().square().sum(dims) * power).sum())


def _forward(
    model: nn.Module, layers: Mapping[str, Layer], batch: Inputs
) -> tuple[list[tuple[str, Tensor]], list[Tensor]]:
    """The layers' values, one for each call, with a way back to them from the outputs."""
    tapped: list[tuple[str, Tensor]] = []

    def watch(name: str, layer: Layer) -> Any:
        def hook(_: nn.Module, args: Any, value: Tensor) -> Tensor:
            value = value if value.requires_grad else value.detach().requires_grad_()
            tapped.append((name, value))
            return value.clone()  # ops in place then leave the tapped value alone

        return layer.register_forward_hook(hook)

    hooks = [watch(name, layer) for name, layer in layers.items()]
    try:
        with eval_view(model), torch.enable_grad():
            found = call_model(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [y for y in pytree.tree_leaves(found) if isinstance(y, Tensor) and y.requires_grad]
    return tapped, outputs
