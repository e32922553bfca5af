"""Bytes on disk."""

from __future__ import annotations

from pathlib import Path

from penjing.errors import MeasureError


def size_bytes(path: Path | str) -> int:
    """Bytes of a file with its external data (``name.onnx.data`` beside it), or of all files in a folder.

    Raises:
        MeasureError: if there is nothing at ``path``.
    """
    path = Path(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if not path.is_file():
        raise MeasureError(f"there is no file {path}", remedy="Give the path of an exported file or folder")
    size = path.stat().st_size
    if path.suffix == ".onnx":
        beside = path.with_name(path.name + ".data")
        size += beside.stat().st_size if beside.is_file() else 0
    return size
