"""Muon: steps in which every direction of a weight matrix is as long as any other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: singular values from 0.001 to 1 come between 0.7 and 1.2 in five rounds."""
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is orthogonalised (Jordan et al. 2024, "Muon"); Adam for all that is no matrix.

    What a least-squares fit needs most is progress in directions in which its inputs vary little. Adam, which
    scales single weights, makes none there; an orthogonalised step makes the same in all. A convolution's
    weight is taken as a matrix of outputs by inputs × kernel; depthwise ones, vectors and scalars go by Adam.

    Args:
        params: Parameters or groups of them; a group's ``scale`` multiplies its steps.
        lr: Root mean square of a step, for matrices; Adam's rate for others.
        momentum: Of the gradients (Nesterov's).
        betas: Adam's.
        weight_decay: Share of a parameter that a step at rate 1 takes away (decoupled).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        every = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "scale": 1.0}
        super().__init__(params, every)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; a closure is evaluated first."""
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                state = self.state[value]
                step = _matrix_step if _is_matrix(value) else _adam_step
                value.mul_(1 - group["lr"] * group["weight_decay"])
                value.add_(step(value.grad, state, group), alpha=-group["lr"] * group["scale"])
        return loss


def size_of(value: Tensor) -> float:
    """Root mean square of a parameter, the unit of its rate; 0.1 where it is all zeros."""
    return float(value.detach().square().mean().sqrt()) or 0.1


def _is_matrix(value: Tensor) -> bool:
    return value.dim() == 2 or (value.dim() > 2 and value.shape[1] > 1)


def _matrix_step(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    momentum = float(group["momentum"])
    mean = _kept(state, "mean", grad).mul_(momentum).add_(grad)
    matrix = (grad + momentum * mean).flatten(1)
    return orthogonal(matrix).mul(math.sqrt(max(matrix.shape))).view_as(grad)


def _adam_step(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    state["steps"] = steps = int(state.get("steps", 0)) + 1
    first, second = map(float, group["betas"])
    mean = _kept(state, "mean", grad).lerp_(grad, 1 - first)
    square = _kept(state, "square", grad).lerp_(grad.square(), 1 - second)
    size = (square / (1 - second**steps)).sqrt() + 1e-8
    return mean / (1 - first**steps) / size


def _kept(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(like)
    kept: Tensor = state[name]
    return kept


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns (Newton–Schulz, no decomposition).

    Args:
        matrix: Any m × n; of zeros, zeros come back.
    """
    a, b, c = _QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-30)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T
