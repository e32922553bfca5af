"""Numbers that a module keeps in buffers, such as a stride to compute paddings with.

torch.export takes any buffer for data, and a size that is computed from data cannot be followed. While a
forward runs, such a number can be a constant of that forward instead, which the tracer computes with itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def kept_numbers(model: nn.Module) -> dict[str, int]:
    """Whole numbers in buffers of no dimension, by name; counters of batch norms are none."""
    return {f"{path}.{name}" if path else name: int(buffer) for path, module, name, buffer in _found(model)}


def _found(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if (
                buffer is not None
                and not buffer.is_meta
                and buffer.ndim == 0
                and not (buffer.is_floating_point() or buffer.is_complex())
                and name != "num_batches_tracked"
            ):
                yield path, module, name, buffer


@contextmanager
def told_numbers(model: nn.Module) -> Iterator[None]:
    """A while in which every forward of the model reads its `kept_numbers` as constants."""
    told = [(module, name, int(buffer), buffer.dtype) for _, module, name, buffer in _found(model)]

    def tell(*_: Any) -> None:
        for module, name, number, kind in told:  # an instance's own attribute comes before its buffers
            module.__dict__[name] = torch.tensor(number, dtype=kind)

    def untell(*_: Any) -> None:
        for module, name, *_rest in told:
            module.__dict__.pop(name, None)

    handles = (
        model.register_forward_pre_hook(tell),
        model.register_forward_hook(untell, always_call=True),
    )
    try:
        yield
    finally:
        untell()
        for handle in handles:
            handle.remove()
