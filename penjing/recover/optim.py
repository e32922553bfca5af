"""Optimizers, lean: fused kernels, no decay on norms and biases, state that saves and loads exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import RecoverError
from penjing.muon import Muon, size_of
from penjing.recover.config import RecoverConfig

_SIZE = "size"
_VECTORS = 1 / 6  # of the rate of matrices, under Muon


def build_optimizer(model: nn.Module, config: RecoverConfig) -> torch.optim.Optimizer:
    """The configured optimizer over the parameters that require gradients.

    Parameters of at most one dimension (biases, normalisation scales) get no weight decay. AdamW, whose
    updates do not know how large a parameter is, trains those that a module names in ``scale_parameters`` at
    rates that are shares of their mean size at the start; Muon trains all at such rates.

    Raises:
        RecoverError: when no parameter requires a gradient.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise RecoverError(
            "no parameter of the model requires a gradient",
            remedy="Call model.requires_grad_(True), or train at least one layer",
        )
    if config.optimizer == "muon":
        return Muon([_relative(p, config) for p in params], lr=config.lr, betas=config.betas)
    named = [p for module in model.modules() for p in getattr(module, "scale_parameters", ())]
    scales = {id(p) for p in named if config.optimizer == "adamw"}
    rest = [p for p in params if id(p) not in scales]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
        *(
            {"params": [p], "weight_decay": 0.0, _SIZE: float(p.detach().abs().mean())}
            for p in params
            if id(p) in scales
        ),
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
    )


def _relative(param: nn.Parameter, config: RecoverConfig) -> dict[str, Any]:
    """A group whose steps are shares of a parameter's size."""
    size = size_of(param)
    if param.dim() > 1:
        return {"params": [param], "scale": size, "weight_decay": config.weight_decay}
    return {"params": [param], "scale": _VECTORS * size, "weight_decay": 0.0}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, relative to its size where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_SIZE, 1.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``{"<parameter index>.<key>": tensor}``, contiguous."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found = {}
    for index, param in enumerate(params):
        for key, value in optimizer.state.get(param, {}).items():
            if value is not None:
                found[f"{index}.{key}"] = torch.as_tensor(value).detach().contiguous()
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, in the memory order of each parameter."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in saved.items():
        index, key = name.split(".", 1)
        param = params[int(index)]
        if value.shape == param.shape:
            # empty_like keeps channels-last strides: the reductions of the next step add in the same order
            value = torch.empty_like(param, dtype=value.dtype).copy_(value)
        else:
            value = value.to(param.device)
        optimizer.state[param][key] = value
