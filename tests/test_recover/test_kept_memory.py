"""Memory kept between steps: no effect on results, and given back afterwards."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from penjing.recover.memory import kept_memory

BLOCK = 256 * 2**20
PAGE = resource.getpagesize()


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def pages_faulted(rounds: int) -> int:
    """Pages that the system had to hand out while a block was filled and freed some times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(BLOCK // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets glibc's allocator")
def test_large_blocks_stay_inside_and_go_back_after() -> None:
    with kept_memory():
        pages_faulted(3)  # the heap finds room for the block
        assert pages_faulted(4) < BLOCK // PAGE
        kept = resident_bytes()
    assert kept - resident_bytes() > BLOCK // 2


def test_errors_pass_through() -> None:
    with pytest.raises(KeyError), kept_memory():
        raise KeyError("inside")
