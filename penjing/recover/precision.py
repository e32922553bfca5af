"""Which number format trains this network faster here: measured on its own steps, never assumed.

On CPUs without bfloat16 units the same code runs hundreds of times slower; on others it takes half the time
for wide convolutions and more time for small layers, so no other network can stand in for the user's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from penjing.errors import PenjingError

Precision = Literal["fp32", "bf16"]
Forward = Callable[[nn.Module], Tensor]

# bf16 rounds to 8 bits of mantissa; it must pay clearly to be worth that
_MIN_SPEEDUP = 1.25
_ROUNDS = 2
MIN_STEPS = 200
"""Shorter runs stay in fp32: measuring takes as long as about six steps."""


def can_gain(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (on CPUs AVX512-BF16, AMX, or Arm's extension).

    Where it is emulated it is not even tried, so that a busy machine cannot mislead.
    """
    if device.type != "cpu":
        return True
    return any(bool(value) for name, value in torch.cpu.get_capabilities().items() if "bf16" in name)


def speedup(model: nn.Module, forward: Forward, device: torch.device) -> float:
    """How many times as fast a step (forward and backward pass) is in bf16 autocast as in fp32.

    Args:
        model: The network in train mode, a copy: its statistics and gradients change.
        forward: Its outputs (any shape) for a batch.
        device: Where it runs.

    Returns:
        Seconds in fp32 over seconds in bf16, the shortest of some turns each; 0 where an operation knows no
        bfloat16.
    """
    _seconds(model, forward, device, False)  # the first pass pays for kernel selection
    try:
        _seconds(model, forward, device, True)
    except (RuntimeError, PenjingError) as error:  # fp32 has just run: it is the format
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return 0.0
    turns = [[_seconds(model, forward, device, bf16) for bf16 in (False, True)] for _ in range(_ROUNDS)]
    plain, half = (min(times) for times in zip(*turns, strict=True))
    return float(plain / half)


def choose(times_as_fast: float) -> Precision:
    """``"bf16"`` where it pays clearly."""
    return "bf16" if times_as_fast >= _MIN_SPEEDUP else "fp32"


def _seconds(model: nn.Module, forward: Forward, device: torch.device, bf16: bool) -> float:
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    with torch.enable_grad():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = forward(model)
        outputs.float().square().mean().backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
