"""Train some parameters and no others, and take it back where it does not help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def _training_only(every: Iterable[Tensor], chosen: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for these alone, for a while.

    Args:
        every: All parameters.
        chosen: Those to be trained, some of them.
    """
    wished = [(value, value.requires_grad) for value in every if value.is_floating_point()]
    for value, _ in wished:
        value.requires_grad_(False)
    for value in chosen:
        value.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for value, wish in wished:
            value.requires_grad_(wish)
            value.grad = None


def improved(
    every: Iterable[Tensor],
    groups: Sequence[dict[str, Any]],
    steps: int,
    loss: Callable[[], Tensor],
    judged: Callable[[], float],
    before: float,
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.Adam,
) -> float:
    """Train with cosine decay; keep the result only where it is judged better.

    Args:
        every: All parameters.
        groups: The optimizer's groups, with a rate each: what is trained.
        steps: How often.
        loss: Of the next batch.
        judged: What decides; less is better.
        before: What it gives for the parameters as they are.
        optimizer: Takes the groups.

    Returns:
        What it gives afterwards: less than before, or before, and then nothing has changed.
    """
    chosen: list[Tensor] = [value for group in groups for value in group["params"]]
    start = [value.detach().clone() for value in chosen]
    with _training_only(every, chosen):
        stepper = optimizer(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, steps)
        for _ in range(steps):
            stepper.zero_grad(set_to_none=True)
            loss().backward()  # type: ignore[no-untyped-call]
            stepper.step()
            schedule.step()
    after = judged()
    if after < before:  # false where it is not a number
        return after
    for value, old in zip(chosen, start, strict=True):
        value.data.copy_(old)
    return before
