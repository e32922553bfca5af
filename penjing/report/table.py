"""The table of a run: pandas, CSV, JSON, and for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.files import atomic_write
from penjing.report import text
from penjing.report.metrics import Metrics, Row

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

SPLITS = ("train", "val", "test")


def batches(metrics: Metrics) -> tuple[int, ...]:
    """The batch sizes at which latency was measured, smallest first."""
    return tuple(sorted({cell.batch for row in metrics.rows for cell in row.latency}))


def splits(metrics: Metrics) -> tuple[str, ...]:
    """The splits that something was measured on."""
    return tuple(split for split in SPLITS if any(split in row.accuracy for row in metrics.rows))


def records(metrics: Metrics) -> list[dict[str, Any]]:
    """One flat dict a row, with the same keys in each: what the CSV and JSON files hold."""
    what = "accuracy" if metrics.classifies else metrics.metric
    return [_record(row, what, batches(metrics), bool(metrics.beside_accuracy)) for row in metrics.rows]


def build_table(metrics: Metrics) -> pd.DataFrame:
    """The table as a data frame, one row a network or file, columns named with their units."""
    import pandas as pd

    return pd.DataFrame.from_records(records(metrics))


def write_table(metrics: Metrics, folder: Path | str) -> tuple[Path, Path]:
    """Write ``table.csv`` and ``table.json`` into the folder; give their paths."""
    csv, plain = Path(folder) / "table.csv", Path(folder) / "table.json"
    frame = build_table(metrics)
    with atomic_write(csv) as aside:
        frame.to_csv(aside, index=False, lineterminator="\n")
    with atomic_write(plain) as aside:
        aside.write_text(json.dumps(records(metrics), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return csv, plain


def terminal_table(metrics: Metrics) -> Group:
    """The table for `rich`, as two that fit a terminal of 80 columns: accuracy, then size and speed."""
    from rich.console import Group
    from rich.table import Table

    heads = headers(metrics)
    quality = len(splits(metrics)) + 1 + bool(metrics.beside_accuracy)
    parts = (range(quality + 1), (0, *range(quality + 1, len(heads))))
    tables = []
    for columns in parts:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(heads[column], justify="right" if column else "left", no_wrap=True)
        for row in metrics.rows:
            shown = cells(row, metrics)
            table.add_row(
                *(shown[column] for column in columns), style="bold" if row.key == metrics.after else ""
            )
        tables.append(table)
    return Group(tables[0], "", tables[1], "", conditions(metrics), *_meaning(metrics))


def _meaning(metrics: Metrics) -> list[str]:
    """The note on what the metric tells, where it goes by the original's answers."""
    what = text.WHAT_IT_IS.get(metrics.metric)
    return [f"{note}." for note in metrics.notes if what and what in note]


def headers(metrics: Metrics) -> list[str]:
    """Column heads for people: what was measured of each split, with the interval of the last."""
    names = splits(metrics)
    return [
        "",
        *(f"{name} %" if metrics.classifies else f"{name} {metrics.metric}" for name in names),
        f"{names[-1] if names else ''} 95% interval".strip(),
        *([f"val {metrics.beside_accuracy}"] if metrics.beside_accuracy else []),
        "params",
        "MACs",
        "file",
        *(f"ms, batch {batch}" for batch in batches(metrics)),
    ]


def cells(row: Row, metrics: Metrics) -> list[str]:
    """One row of `headers` as text; "–" where nothing was measured."""
    accuracies = [row.accuracy.get(split) for split in splits(metrics)]
    shown = [text.quality(cell).removesuffix("%") if cell else "–" for cell in accuracies]
    last = accuracies[-1] if accuracies else None
    latency = []
    for batch in batches(metrics):
        cell = row.latency_at(batch)
        latency.append(
            f"{text.milliseconds(cell.median_ms)} ({text.milliseconds(cell.p95_ms)})" if cell else "–"
        )
    return [
        row.label,
        *shown,
        (text.bounds(last) if last else "") or "–",
        *([_value(row.metric)] if metrics.beside_accuracy else []),
        text.count(row.num_params),
        text.count(row.num_macs),
        text.size(row.size_bytes),
        *latency,
    ]


def _value(metric: float | None) -> str:
    return "–" if metric is None else f"{metric:.4g}"


def conditions(metrics: Metrics) -> str:
    """The line under the table: sample counts, runtime, threads, device."""
    parts = []
    for split in splits(metrics):
        sizes = sorted({row.accuracy[split].n for row in metrics.rows if split in row.accuracy})
        if sizes:
            parts.append(f"{split} n={'/'.join(str(n) for n in sizes)}")
    cell = next((cell for row in metrics.rows for cell in row.latency), None)
    if cell is not None:
        threads = f"{cell.threads} thread{'s' if cell.threads != 1 else ''}"
        parts.append(
            f"latency: median (95th percentile) of {cell.num_runs} runs, {cell.runtime}, {cell.device}, "
            f"{threads}"
        )
    if beside := text.busy(metrics):
        parts.append(beside)
    return "; ".join(parts)


def _record(row: Row, what: str, all_batches: tuple[int, ...], metric: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"row": row.key, "label": row.label}
    for split in SPLITS:
        cell = row.accuracy.get(split)
        out |= {
            f"{split}_{what}": cell.value if cell else None,
            f"{split}_n": cell.n if cell else None,
            f"{split}_low95": cell.low if cell else None,
            f"{split}_high95": cell.high if cell else None,
        }
    out |= {"val_metric": row.metric} if metric else {}
    out |= {"num_params": row.num_params, "num_macs": row.num_macs, "size_bytes": row.size_bytes}
    for batch in all_batches:
        timed = row.latency_at(batch)
        out |= {
            f"latency_batch{batch}_median_ms": timed.median_ms if timed else None,
            f"latency_batch{batch}_p95_ms": timed.p95_ms if timed else None,
        }
    first = row.latency[0] if row.latency else None
    out |= {
        "threads": first.threads if first else None,
        "runtime": first.runtime if first else None,
        "device": first.device if first else None,
        "file": row.file,
        "measured_on": row.measured_on,
        "note": row.note,
    }
    return out
