"""Which number format trains faster here: measured, never assumed.

On CPUs without bfloat16 units the same code runs hundreds of times slower, on others twice as fast.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Precision = Literal["fp32", "bf16"]

# bf16 rounds to 8 bits of mantissa; it must pay clearly to be worth that
_MIN_SPEEDUP = 1.25
_ROUNDS = 5


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """``"fp32"`` or ``"bf16"``; ``"auto"`` measures a small convolution and matrix product on ``device``."""
    if wanted == "auto":
        return _measured(device.type)
    return "bf16" if wanted == "bf16" else "fp32"


@cache
def _measured(device: str) -> Precision:
    """The faster one; where bf16 is emulated it is not even tried, so that a busy machine cannot mislead."""
    if device == "cpu" and not _cpu_has_bf16():
        return "fp32"
    for bf16 in (False, True):
        _seconds(device, bf16)  # the first pass pays for kernel selection
    rounds = [(_seconds(device, False), _seconds(device, True)) for _ in range(_ROUNDS)]
    plain, half = (min(times) for times in zip(*rounds, strict=True))
    return "bf16" if half * _MIN_SPEEDUP < plain else "fp32"


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX, or Arm's extension)."""
    capabilities = torch.cpu.get_capabilities()
    return any(bool(value) for name, value in capabilities.items() if "bf16" in name)


def _seconds(device: str, bf16: bool) -> float:
    """Seconds for a forward and backward pass, small enough to be bearable in an emulated format."""
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(8, 16, 16, 16, generator=generator).to(device)
    x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
    w_OIHW = nn.Parameter(torch.randn(32, 16, 3, 3, generator=generator).to(device) / 12)
    w_OI = nn.Parameter(torch.randn(128, 2048, generator=generator).to(device) / 45)
    start = time.perf_counter()
    with torch.enable_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        hidden = F.conv2d(x_NCHW, w_OIHW, padding=1, stride=2).relu()
        F.linear(hidden.flatten(1), w_OI).float().square().mean().backward()  # type: ignore[no-untyped-call]
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
