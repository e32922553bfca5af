"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from penjing.recover.checkpoint import model_tensors


class WeightAverage:
    """A second model whose weights trail the first.

    After step t the average moves by ``1 - min(decay, (1 + t) / (10 + t))`` towards the current weights,
    so the first steps do not hold on to the starting point. Floating-point buffers (batch-norm statistics)
    are averaged as well; other buffers are copied, and so are those that hold infinities, as causal masks
    do: there is no way from -∞ to -∞ that a mean could take.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self._averaged = [
            name
            for name, value in model_tensors(self.model).items()
            if value.is_floating_point() and bool(value.isfinite().all())
        ]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards ``model`` after optimizer step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = model_tensors(self.model), model_tensors(model)
        names = self._averaged
        torch._foreach_lerp_([averaged[n] for n in names], [current[n] for n in names], 1 - decay)
        for name in averaged.keys() - set(names):
            averaged[name].copy_(current[name])
