"""`penjing bench`: time exported files side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli import common
from penjing.errors import MeasureError


def command(
    files: Annotated[list[Path], typer.Argument(help="ONNX files and SavedModel folders.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes; by default 1 and 32.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs of each file.")] = 50,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Of a dimension that is free besides the batch: length=128, or *:1=128."),
    ] = None,
    json: common.Json = False,
) -> None:
    """Time files in their runtimes.

    They are run in turns, so that a busy machine is unfair to none.
    """
    from penjing.measure import latency, size_bytes

    rows, sizes = [], _Sizes(map(_size, size or ()))
    for samples in batch or [1, 32]:
        candidates = {str(file): _candidate(file, samples, threads, sizes) for file in files}
        sizes.check_all_taken()
        for name, timed in latency(candidates, num_runs=runs).items():
            rows.append({"file": name, "size_bytes": size_bytes(Path(name)), **timed.to_dict()})
    common.emit({"rows": rows}, _table(rows), json)


class _Sizes(dict[str, int]):
    """Sizes by what they are of, that know which of them some file has taken."""

    def __init__(self, given: Iterable[tuple[str, int]]) -> None:
        super().__init__(given)
        self._taken: set[str] = set()

    def __getitem__(self, name: str) -> int:
        self._taken.add(name)
        return super().__getitem__(name)

    def check_all_taken(self) -> None:
        """Refuse one that no file leaves free: a misspelt name would change nothing, without a word."""
        if idle := [name for name in self if name not in self._taken]:
            raise MeasureError(
                f"no file leaves {', '.join(idle)} free",
                layer="--size",
                remedy="Correct the name, or leave it out",
            )


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not name or not value.isdecimal() or int(value) < 1:
        raise MeasureError(
            f"{text!r} is no size of a dimension", layer="--size", remedy="Write length=128 or *:1=128"
        )
    return name.strip(), int(value)


def _candidate(file: Path, batch: int, threads: int, sizes: dict[str, int]) -> Any:
    from penjing.measure import onnx_candidate, saved_model_candidate

    if not file.exists():
        raise MeasureError(f"{file} does not exist", remedy="Give an exported file")
    if file.suffix.lower() == ".onnx":
        return onnx_candidate(file, batch=batch, threads=threads, sizes=sizes)
    if (file / "saved_model.pb").is_file():
        return saved_model_candidate(file, batch=batch, threads=threads, sizes=sizes)
    raise MeasureError(
        f"{file} is no ONNX file and no SavedModel", remedy="Give .onnx files or SavedModel folders"
    )


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from penjing.report.text import milliseconds, size

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("file", "size", "batch", "median ms", "p95 ms", "threads", "runtime"):
        left = head in ("file", "runtime")
        table.add_column(head, justify="left" if left else "right", no_wrap=head != "file", overflow="fold")
    for row in rows:
        table.add_row(
            row["file"],
            size(row["size_bytes"]),
            str(row["batch"]),
            milliseconds(row["median_ms"]),
            milliseconds(row["p95_ms"]),
            str(row["threads"]),
            row["runtime"],
        )
    return table
