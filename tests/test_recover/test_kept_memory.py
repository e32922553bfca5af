"""Memory kept between steps: no effect on results, and given back afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from penjing.recover.memory import kept_memory

# In a process of its own: what a heap holds already decides where a block finds room.
MEASURE = """
import json, resource, torch
from penjing.recover.memory import kept_memory

PAGE = resource.getpagesize()
BLOCK = 256 * 2**20

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE

def faulted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(BLOCK // 4)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * PAGE / BLOCK

usual = faulted()
with kept_memory():
    faulted()
    kept, inside = faulted(), resident()
print(json.dumps({"usual": usual, "kept": kept, "returned": (inside - resident()) / BLOCK}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets glibc's allocator")
def test_large_blocks_stay_inside_and_go_back_after() -> None:
    output = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(output)
    assert found["kept"] < 0.5, found  # blocks' worth of pages that four fillings had to fetch anew
    assert found["returned"] > 0.5, found


def test_errors_pass_through() -> None:
    with pytest.raises(KeyError), kept_memory():
        raise KeyError("inside")
