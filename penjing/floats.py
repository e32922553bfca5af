"""Formats of floating-point numbers: runtimes have all their kernels for float32 alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


def other_floats(params: Iterable[Tensor]) -> str:
    """The formats other than float32 among the floating-point ones, such as ``"bfloat16"``; "" for none."""
    found = {p.dtype for p in params if p.is_floating_point()} - {torch.float32}
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))


@contextmanager
def autocast_off() -> Iterator[set[str]]:
    """Autocast that a forward has inside changes nothing; gives the formats it was to compute in."""
    found: set[str] = set()
    enter = torch.autocast.__enter__

    def entered(block: torch.autocast) -> Any:
        was = block._enabled
        if was:
            found.add(str(block.fast_dtype).removeprefix("torch."))
        block._enabled = False
        try:
            return enter(block)  # type: ignore[no-untyped-call]
        finally:
            block._enabled = was

    with patch.object(torch.autocast, "__enter__", entered):
        yield found
