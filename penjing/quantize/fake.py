"""Rounding that gradients pass through, with steps that are learned: LSQ (Esser et al. 2020, eq. 1–3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penjing.quantize.weights import Guard, as_rows, from_rows, pad_channels, round_rows


class _Round(torch.autograd.Function):
    """``levels · step``; the gradient reaches ``x`` where it is not clipped, and the step everywhere."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, levels: Tensor, low: float, high: float, per_step: int
    ) -> Tensor:
        ctx.save_for_backward(x, step, levels)
        ctx.limits, ctx.per_step = (low, high), per_step
        return levels * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, step, levels), (low, high) = grads, ctx.saved_tensors, ctx.limits
        ratio = x / step
        inside = (ratio >= low) & (ratio <= high)
        to_x = grad * inside if ctx.needs_input_grad[0] else None
        to_step = None
        if ctx.needs_input_grad[1]:
            # Within the range d(levels·step)/d(step) = levels − x/step; at a limit it is the limit.
            slope = torch.where(inside, levels - ratio, levels)
            scale = (ctx.per_step * max(abs(low), abs(high))) ** -0.5
            to_step = (grad * slope).sum_to_size(step.shape) * scale
        return to_x, to_step, None, None, None, None


def fake_activation(x: Tensor, step: Tensor, zero_point: int, top: int = 255) -> Tensor:
    """``x`` as an unsigned tensor holds it: ``step · (clamp(round(x/step) + zero, 0, top) − zero)``.

    Args:
        x: Any shape, samples first.
        step: The scale, a positive tensor of one element.
        zero_point: The level that stands for 0.0.
        top: The highest level.
    """
    low, high = float(-zero_point), float(top - zero_point)
    levels = torch.round(x.detach() / step.detach()).clamp_(low, high)
    out: Tensor = _Round.apply(x, step, levels, low, high, max(x.numel() // max(len(x), 1), 1))
    return out


def fake_weight(w: Tensor, step_O: Tensor, axis: int, guard: Guard, top: int, lone: int = 0) -> Tensor:
    """``w`` as the file's signed weights hold it, one step per output channel.

    The levels are those of `penjing.quantize.weights.round_rows`, pair guard included: what is trained is
    what will be written.

    Args:
        w: The weight in the runtime's layout.
        step_O: One positive step per output channel.
        axis: The output channel axis.
        guard: What protects 16-bit sums.
        top: The highest level.
        lone: Channels of zeros that the guard counts behind the weight's own
            (`penjing.quantize.encode.lone_channels`).
    """
    shape = [1] * w.ndim
    shape[axis] = -1
    held = pad_channels(w.detach().cpu().numpy(), lone)
    q = from_rows(
        round_rows(as_rows(held, axis), step_O.detach().cpu().numpy(), guard, top), held.shape, axis
    )[:, : held.shape[1] - lone]
    levels = torch.from_numpy(q.astype(np.float32)).to(w.device)
    per_step = max(w.numel() // w.shape[axis], 1)
    out: Tensor = _Round.apply(w, step_O.reshape(shape), levels, -float(top), float(top), per_step)
    return out


def fake_bias(bias_O: Tensor, step: Tensor, step_O: Tensor) -> Tensor:
    """A bias as the file's 32-bit integers hold it, in steps of input step × weight step.

    With few bits a step of the weight is large, and so is what this rounds: as much as the output's own
    steps. The steps get no gradient from here.

    Args:
        bias_O: One bias per output channel.
        step: The scale of the layer's input, a positive tensor of one element.
        step_O: The weight's steps, one positive number per output channel.
    """
    fine_O = (step.detach().double() * step_O.detach().double()).to(bias_O.dtype)
    levels_O = torch.round(bias_O.detach().double() / fine_O.double()).to(bias_O.dtype)
    out: Tensor = _Round.apply(bias_O, fine_O, levels_O, -math.inf, math.inf, 1)
    return out
