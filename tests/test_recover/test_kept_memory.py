"""Memory kept between steps: no effect on results, and given back afterwards."""

from __future__ import annotations

import sys

import pytest
import torch

from penjing.recover.memory import kept_memory


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets glibc's allocator")
def test_large_blocks_stay_inside_and_go_back_after() -> None:
    size = 256 * 2**20
    with kept_memory():
        torch.ones(size // 4)
        kept = resident_bytes()
        torch.ones(size // 4)
        assert abs(resident_bytes() - kept) < size // 8
    assert kept - resident_bytes() > size // 2


def test_errors_pass_through() -> None:
    with pytest.raises(KeyError), kept_memory():
        raise KeyError("inside")
