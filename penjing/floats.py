"""Formats of floating-point numbers: runtimes have all their kernels for float32 alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


def floats_of(params: Iterable[Tensor]) -> frozenset[torch.dtype]:
    """The floating-point formats of tensors."""
    return frozenset(p.dtype for p in params if p.is_floating_point())


def other_floats(floats: Iterable[torch.dtype]) -> str:
    """Those other than float32, such as ``"bfloat16"``; "" for none."""
    return ", ".join(sorted(str(kind).removeprefix("torch.") for kind in {*floats} - {torch.float32}))


def only_other_floats(floats: Collection[torch.dtype]) -> str:
    """As `other_floats`, but "" where float32 is one of them."""
    return "" if torch.float32 in floats else other_floats(floats)


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
