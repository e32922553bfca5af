"""Bytes on disk."""

from __future__ import annotations

from pathlib import Path

from penjing.errors import MeasureError


def size_bytes(path: Path | str) -> int:
    """Bytes of a file, of ONNX with the files beside it that hold its weights, or of all files in a folder.

    Raises:
        MeasureError: if there is nothing at ``path``, or weights are missing beside it.
        ArtifactError: for an ONNX file that is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if not path.is_file():
        raise MeasureError(f"there is no file {path}", remedy="Give the path of an exported file or folder")
    files = [path]
    if path.suffix.lower() == ".onnx":
        from penjing.models.external_data import external_files
        from penjing.models.onnx_read import load_proto

        files += [path.parent / name for name in external_files(load_proto(path, weights=False))]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise MeasureError(
            f"{missing} with weights of {path.name} is missing",
            layer=path.name,
            remedy="Copy it there: the file is not whole without it",
        )
    return sum(file.stat().st_size for file in files)
