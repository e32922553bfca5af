"""Numbers as people read them."""

from __future__ import annotations

from penjing.report.metrics import AccuracyCell, Metrics, Row

WHAT_IT_IS = {
    "agreement": "the share of samples whose highest score is the original's",
    "fidelity": "the share of the variance of the original's outputs that a network's outputs explain (R²)",
}
"""What metrics tell that go by the original's answers."""


def count(value: float) -> str:
    """``102M``, ``9.87M``, ``512``: three significant digits."""
    return _scaled(value, (("G", 1e9), ("M", 1e6), ("k", 1e3)), "")


def some(num: int, what: str, more: str = "") -> str:
    """``1 group``, ``2 groups``; ``2 branches`` with ``more="branches"``."""
    return f"{num:,} {what if num == 1 else more or what + 's'}"


def size(num_bytes: float) -> str:
    """``409 MB``, ``9.87 MB``, ``12 kB`` (powers of ten)."""
    return _scaled(num_bytes, ((" GB", 1e9), (" MB", 1e6), (" kB", 1e3)), " B")


def _scaled(value: float, units: tuple[tuple[str, float], ...], plain: str) -> str:
    rounded = float(f"{value:.3g}")  # first, so that 999,999 becomes 1M and not 1000k
    for unit, scale in units:
        if abs(rounded) >= scale:
            return f"{rounded / scale:.3g}{unit}"
    return f"{rounded:g}{plain}"


def milliseconds(value: float) -> str:
    """``0.123``, ``1.23``, ``12.3``, ``123``: three significant digits, no exponent."""
    for limit, digits in ((1, 3), (10, 2), (100, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(value: float, digits: int = 2) -> str:
    """``95.12%``."""
    return f"{100 * value:.{digits}f}%"


def group(name: str) -> str:
    """A group's id without what goes without saying: ``layer1.0.conv1`` for ``layer1.0.conv1.weight:0``."""
    return name.replace(".weight:0", "")


def quality(cell: AccuracyCell) -> str:
    """``95.12%``, or the value of a metric as it is: ``0.8991``."""
    return percent(cell.value) if cell.is_accuracy else f"{cell.value:.4g}"


def interval(cell: AccuracyCell) -> str:
    """``94.1–95.9%, n=5000``; of a metric that is a share ``0.941–0.959, n=5000``, of others ``n=5000``."""
    ends = bounds(cell)
    return f"{ends}{'%' if cell.is_accuracy else ''}, n={cell.n}" if ends else f"n={cell.n}"


def bounds(cell: AccuracyCell) -> str:
    """``94.1–95.9`` in percent, or ``0.941–0.959`` of a metric that is a share; "" where there are none."""
    if cell.low is None or cell.high is None:
        return ""
    if cell.is_accuracy:
        return f"{100 * cell.low:.1f}–{100 * cell.high:.1f}"
    return f"{cell.low:.3f}–{cell.high:.3f}"


def times(before: float, after: float) -> str:
    """``10.4×``: how many times smaller."""
    return f"{before / after:.3g}×" if after else "∞×"


def changed(before: float, after: float, less: str, more: str) -> str:
    """``2.4× smaller`` or ``1.1× larger``: how many times, with the word for less or for more.

    Instead of ``1×`` it is ``unchanged`` or, whichever of the two is larger, ``about the same``.
    """
    if before == after:
        return "unchanged"
    how_many = times(max(before, after), min(before, after))
    return "about the same" if how_many == "1×" else f"{how_many} {less if after <= before else more}"


def headline(metrics: Metrics) -> str:
    """One sentence: what went in, what came out, what it cost; "" where a row is missing."""
    before, after = metrics.row(metrics.before), metrics.row(metrics.after)
    if before is None or after is None:
        return ""
    parts = [
        f"{count(before.num_params)} → {count(after.num_params)} parameters "
        f"({changed(before.num_params, after.num_params, 'fewer', 'more')})",
        f"{size(before.size_bytes)} → {size(after.size_bytes)} on disk "
        f"({changed(before.size_bytes, after.size_bytes, 'smaller', 'larger')})",
    ]
    parts += _latency_part(before, after)
    return ", ".join(parts) + _quality_part(metrics, before, after) + "."


def verdict(metrics: Metrics) -> str:
    """One sentence: whether the allowed loss held, and for what; "" where nothing was asked."""
    if metrics.max_drop is None or metrics.held is None:
        return ""
    outcome = {
        None: "held",
        "loss": "did not hold",
        "budget": "held, but not at the budget: a larger size had to be taken",
        "int8": "held, but in float alone: the latency was bounded in int8, where no file held",
    }[metrics.missed]
    loss = allowed(metrics.max_drop, metrics.drop, metrics.metric)
    return f"The allowed loss of {loss} {outcome}."


def score(value: float, metrics: Metrics) -> str:
    """Of a network that was tried: ``95.12%``, or the value of a metric as it is: ``0.8991``."""
    return f"{value:.4g}" if metrics.metric else percent(value)


def lost(drop: float, kind: str, metrics: Metrics) -> str:
    """Its loss in the unit of `allowed`: ``0.50 points``, ``1.00%``, of a metric ``0.0084``."""
    if kind == "relative":
        return percent(drop)
    return f"{drop:.4f}" if metrics.metric else f"{100 * drop:.2f} points"


def allowed(loss: float, drop: str, metric: str) -> str:
    """``0.5 points of validation accuracy``, ``1% of the validation iou``, ``0.02 of the validation iou``."""
    of = f"the validation {metric or 'accuracy'}"
    if drop == "relative":
        return f"{100 * loss:g}% of {of}"
    points = f"{100 * loss:g}"
    return f"{loss:g} of {of}" if metric else f"{points} point{'s' * (points != '1')} of validation accuracy"


def _latency_part(before: Row, after: Row) -> list[str]:
    for cell in before.latency:
        other = after.latency_at(cell.batch)
        if other is None:
            continue
        old, new, said = cell.median_ms, other.median_ms, ""
        if (cell.busy or other.busy) and cell.quiet_ms and other.quiet_ms:
            old, new, said = cell.quiet_ms, other.quiet_ms, ", without the other work that ran beside"
        shown = f"{milliseconds(old)} → {milliseconds(new)} ms at batch {cell.batch}"
        return [f"{shown} ({changed(old, new, 'faster', 'slower')}{said})"]
    return []


def busy(metrics: Metrics) -> str:
    """What has to be said of the latencies where other work ran while they were taken; "" where none did."""
    found = [cell for row in metrics.rows for cell in row.latency if cell.busy]
    if not found:
        return ""
    most = max(cell.median_ms / cell.quiet_ms for cell in found if cell.quiet_ms)
    return (
        f"other work ran while latency was timed: medians are up to {most:.1f}× what the files take by "
        "themselves, and do not compare; measure again on a quiet machine"
    )


def _quality_part(metrics: Metrics, before: Row, after: Row) -> str:
    for split in ("test", "val"):
        old, new = before.accuracy.get(split), after.accuracy.get(split)
        if old and new:
            points = 100 * (new.value - old.value)
            name = {"test": "test", "val": "validation"}[split]
            if not metrics.classifies:
                return f"; {name} {metrics.metric} {quality(old)} → {quality(new)} (n={new.n})"
            same = abs(points) < 0.005
            change = "unchanged" if same else f"{'+' if points > 0 else '−'}{abs(points):.2f} points"
            change = f"{change}, n={new.n}"
            shown = f"; {name} accuracy {percent(old.value)} → {percent(new.value)} ({change})"
            return shown + _beside_part(metrics, before, after)
    return ""


def _beside_part(metrics: Metrics, before: Row, after: Row) -> str:
    """The metric that the loss is measured in, where the accuracy is shown too."""
    if not metrics.beside_accuracy or before.metric is None or after.metric is None:
        return ""
    return f", validation {metrics.beside_accuracy} {before.metric:.4g} → {after.metric:.4g}"
