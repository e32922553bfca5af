"""Archives that are read whole: none may unpack to more than the machine holds."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from penjing.errors import PenjingError


def check_unpacks(path: Path, error: type[PenjingError]) -> None:
    """Refuse a zip file (``.npz``, ``.keras``) that would fill the memory; of a damaged one its reader tells.

    Raises:
        PenjingError: of class ``error``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        return
    memory = memory_bytes()
    if unpacked > memory:
        from penjing.report.text import size

        raise error(
            f"unpacked it takes {size(unpacked)}, and the machine has {size(memory)} of memory",
            layer=str(path),
            remedy="Check where it comes from; give large data as an image folder or in Parquet",
        )


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
