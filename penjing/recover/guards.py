"""Find out where numbers went wrong: the step is known, the layer is looked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from penjing.batches import Inputs, call_model
from penjing.errors import RecoverError
from penjing.graph.remembered import put_back

_REMEDY = (
    "Lower the learning rate, set grad_clip, add warmup, or use precision='fp32', and start again; with a "
    "checkpoint, in a new folder"
)


def non_finite(model: nn.Module, inputs: Inputs, step: int, found: str) -> RecoverError:
    """An error that names the first layer with a non-finite parameter, output or gradient.

    The batch is run through the model once more, without gradient, with every leaf module watched.

    Args:
        model: The model as it was when it went wrong (gradients still there, if any).
        inputs: The batch's inputs.
        step: Optimizer step, from 1.
        found: What was seen: ``"the loss is nan"``.
    """
    layer, what = _first_bad(model, inputs)
    cause = f"{found} at step {step}; {what}" if what else f"{found} at step {step}"
    return RecoverError(cause, layer=layer, remedy=_REMEDY)


def _first_bad(model: nn.Module, inputs: Inputs) -> tuple[str | None, str]:
    for name, param in model.named_parameters():
        if not _finite(param):
            return name, "this parameter is not finite"
    hit: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not hit and isinstance(output, Tensor) and not _finite(output):
                hit.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad(), put_back(model):
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if hit:
        return hit[0], "the first layer whose output is not finite is named"
    for name, param in model.named_parameters():
        if param.grad is not None and not _finite(param.grad):
            return name, "the first parameter whose gradient is not finite is named"
    return None, ""


def _finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x).all())
