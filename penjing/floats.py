"""Formats of floating-point weights: runtimes have all their kernels for float32 alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def other_floats(params: Iterable[Tensor]) -> str:
    """The formats other than float32 among the floating-point ones, such as ``"bfloat16"``; "" for none."""
    found = {p.dtype for p in params if p.is_floating_point()} - {torch.float32}
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
