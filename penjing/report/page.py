"""The report: one HTML page that needs nothing else, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from penjing.files import atomic_write
from penjing.manifest import admit
from penjing.report import svg, table, text
from penjing.report.heat import MEASURES, heat_map
from penjing.report.metrics import Metrics, Row
from penjing.report.table import write_table

STAGE_NAMES = {
    "article": "as the article trains it",
    "train": "dense",
    "recover": "recovery",
    "random": "random pruning",
    "scratch": "from scratch",
}
_MANY = 60  # bars in one chart; longer lists are cut and the page says so


def write_report(folder: Path | str, metrics: Metrics | None = None) -> Path:
    """Write ``report.html``, ``table.csv`` and ``table.json`` into a run folder (an artifact lists them).

    Args:
        folder: The run folder.
        metrics: What to show; by default the folder's own ``metrics.json``.

    Returns:
        The path of the page.

    Raises:
        ArtifactError: if there is no usable ``metrics.json``.
        RunError: if the folder cannot be written.
    """
    metrics = metrics or Metrics.read(folder)
    path = Path(folder) / "report.html"
    files = (path, *write_table(metrics, folder))
    with atomic_write(path) as aside:
        aside.write_text(render(metrics), encoding="utf-8")
    admit(Path(folder), (file.name for file in files))
    return path


def render(metrics: Metrics) -> str:
    """The page as text; the same metrics give the same page."""
    environment = Environment(
        loader=PackageLoader("penjing.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": text.count,
        "size": text.size,
        "ms": text.milliseconds,
        "percent": text.percent,
        "quality": text.quality,
        "duration": text.duration,
        "interval": text.interval,
        "number": _number,
        "score": lambda value: text.score(value, metrics),
        "lost": lambda drop: text.lost(drop, metrics.search.drop if metrics.search else "", metrics),
    }
    plots = {
        "size": _tradeoff(
            metrics, [(row, float(row.size_bytes)) for row in metrics.rows], "file size, bytes"
        ),
        "latency": _tradeoff(metrics, _latencies(metrics), _latency_label(metrics)),
        "quality_curve": _curves(metrics, "val_accuracy", "validation accuracy, %", 100.0)
        if metrics.classifies
        else _curves(metrics, "val_metric", f"validation {metrics.metric}", 1.0),
        "loss_curve": _curves(metrics, "train_loss", "training loss", 1.0),
        "widths": _widths(metrics),
        "search": _search(metrics),
        "sensitivity": "" if metrics.sensitivity is None else heat_map(metrics.sensitivity),
        "quantization": _quantization(metrics),
    }
    return environment.get_template("page.html.j2").render(
        metrics=metrics,
        what="accuracy" if metrics.classifies else metrics.metric,
        judged=_judged(metrics),
        intervals=_has_intervals(metrics),
        splits=[
            (split, name)
            for split, name in (("val", "validation"), ("test", "test"))
            if any(split in file.accuracy for file in metrics.files)
        ],
        headline=text.headline(metrics),
        verdict=text.verdict(metrics),
        allowed=text.allowed,
        headers=table.headers(metrics),
        rows=[(row, table.cells(row, metrics)) for row in metrics.rows],
        conditions=table.conditions(metrics),
        plots={name: Markup(plot) for name, plot in plots.items()},
        cut={
            "widths": max(0, len(metrics.widths) - _MANY),
            "quantized": max(0, len(metrics.quantized) - _MANY),
        },
        measure="" if metrics.sensitivity is None else MEASURES.get(metrics.sensitivity["measure"], ""),
        kept_float=[layer for layer in metrics.quantized if layer.kept_float],
        total_seconds=sum(metrics.seconds.values()),
    )


def _judged(metrics: Metrics) -> str:
    """The split that is reported: validation data where there is no test set."""
    return "test" if any("test" in row.accuracy for row in metrics.rows) else "validation"


def _has_intervals(metrics: Metrics) -> bool:
    return any(cell.low is not None for row in metrics.rows for cell in row.accuracy.values())


def _tradeoff(metrics: Metrics, places: Sequence[tuple[Row, float]], x_label: str) -> str:
    """Test quality (validation where there is no test set) of each row against a cost."""
    series = []
    for row, x in places:
        cell = row.accuracy.get("test") or row.accuracy.get("val")
        if cell is None:
            continue
        title = f"{row.label}: {text.quality(cell)} ({text.interval(cell)})"
        unit = 100.0 if cell.is_accuracy else 1.0
        low, high = (None if end is None else unit * end for end in (cell.low, cell.high))
        point = svg.Point(x, unit * cell.value, low, high, row.label, title)
        series.append(svg.Series(row.label, (point,)))
    what = "accuracy, %" if metrics.classifies else metrics.metric
    return svg.chart(series, x_label=x_label, y_label=f"{_judged(metrics)} {what}", **_scatter(metrics))


def _scatter(metrics: Metrics) -> dict[str, Any]:
    """Quality against something that grows in powers; percentages end at 100, shares at 1."""
    most = 100.0 if metrics.classifies else 1.0 if _has_intervals(metrics) else None
    return {"lines": False, "log_x": True, "most": most}


def _latencies(metrics: Metrics) -> list[tuple[Row, float]]:
    sizes = table.batches(metrics)
    cells = [(row, row.latency_at(sizes[0])) for row in metrics.rows] if sizes else []
    return [(row, cell.median_ms) for row, cell in cells if cell is not None]


def _latency_label(metrics: Metrics) -> str:
    sizes = table.batches(metrics)
    return f"median latency at batch {sizes[0]}, ms" if sizes else ""


def _curves(metrics: Metrics, name: str, label: str, factor: float) -> str:
    series, most = [], 100 if factor == 100 else None
    for stage, history in metrics.curves.items():
        points = tuple(
            svg.Point(float(epoch.get("epoch", index + 1)), factor * float(epoch[name]))
            for index, epoch in enumerate(history)
            if isinstance(epoch.get(name), (int, float))
        )
        if points:
            series.append(svg.Series(STAGE_NAMES.get(stage, stage), points))
    return svg.chart(series, x_label="epoch", y_label=label, whole_x=True, most=most)


def _widths(metrics: Metrics) -> str:
    rows = [
        svg.Bar(text.group(width.name), width.after, f"{width.before} → {width.after}", whole=width.before)
        for width in metrics.widths[:_MANY]
    ]
    return svg.bars(rows, label="width of each group before and after")


def _search(metrics: Metrics) -> str:
    """Score against what was left, of every size tried and the original."""
    if metrics.search is None:
        return ""
    factor, unit = (1, "") if metrics.metric else (100, ", %")
    series = []
    for held, name in ((True, "held"), (False, "did not hold")):
        points = tuple(
            svg.Point(
                trial.spent["params"],
                factor * trial.score,
                label=str(trial.number),
                title=f"trial {trial.number}: {text.score(trial.score, metrics)}, "
                f"{'lost' if trial.drop >= 0 else 'gained'} "
                f"{text.lost(abs(trial.drop), metrics.search.drop, metrics)}",
            )
            for trial in metrics.search.trials
            if trial.held is held and trial.spent.get("params")
        )
        if points:
            series.append(svg.Series(name, points))
    what = metrics.metric or "validation accuracy"
    scatter = _scatter(metrics) | ({"most": None} if metrics.metric else {})
    return svg.chart(series, x_label="parameters", y_label=f"{what}{unit}", **scatter)


def _quantization(metrics: Metrics) -> str:
    rows = [
        svg.Bar(layer.name, layer.sqnr_db, f"{layer.sqnr_db:.1f} dB")
        for layer in metrics.quantized[:_MANY]
        if layer.sqnr_db is not None
    ]
    return svg.bars(rows, label="signal to quantization noise of each layer's output, dB")


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2e}" if isinstance(value, float) else str(value)
