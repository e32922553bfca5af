"""Train some parameters and no others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def training_only(every: Iterable[Tensor], chosen: Sequence[Tensor]) -> Iterator[None]:
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
