"""Does this CPU multiply 8-bit numbers without overflow?

x86 before VNNI multiplies u8·s8 pairs with ``vpmaddubsw``, which adds two products in 16 saturating bits:
255·127·2 does not fit. Newer x86 (``avx512_vnni``, ``avx_vnni``, AMX) and ARM (``asimddp``) sum in 32 bits.
"""

from __future__ import annotations

import platform
from pathlib import Path

_DOT_PRODUCT_FLAGS = frozenset({"avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni", "amx_int8"})


def sums_pairs_in_16_bits(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str | None = None) -> bool:
    """True where u8·s8 kernels saturate, so that weights must leave room.

    Unknown x86 machines count as saturating (a lost fraction of a bit is cheaper than a wrong output); other
    architectures have widening multiplies and never saturate.
    """
    if (machine or platform.machine()).lower() not in {"x86_64", "amd64", "i686", "x86"}:
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
    return not flags & _DOT_PRODUCT_FLAGS
