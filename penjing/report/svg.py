"""Small hand-made SVG plots: no script, no network, colours from the page's own light and dark themes.

Every plot is one ``<svg>`` with a viewBox 480 units wide, so that text stays readable when a phone shrinks
it, and every mark carries a ``<title>`` (the browser's tooltip) with its exact numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42
_HEIGHT = 300
_ROW = 22
NUM_COLOURS = 6
_CHARACTER = 7.4 * 15 / 13  # mean width of a character in a wide sans-serif font of 15 px, as phones show it
_Y_LABEL = 24  # what the turned label of y takes, with a gap to the numbers
_DOT, _LINE = 6.0, 13.0
_ABOVE = 4.0  # what letters such as p reach below their line


@dataclass(frozen=True)
class Point:
    """One mark: position, an optional vertical interval, what to write beside it and in its tooltip."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    title: str = ""


@dataclass(frozen=True)
class Series:
    """Points joined by a line (or not), in one colour; ``name`` goes to the legend."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: ``value`` solid, ``whole`` (if any) as the pale bar behind it."""

    label: str
    value: float
    text: str
    whole: float | None = None


@dataclass(frozen=True)
class Scale:
    """Maps data to plot units, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        at = math.log10(value) if self.log else value
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range: about five."""
        if self.log:
            return _log_ticks(self.low, self.high)
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / 4
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = next(magnitude * m for m in (1, 2, 2.5, 5, 10) if magnitude * m >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * index for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks if len(ticks) >= 2 else Scale(low, high, 0, 1).ticks()


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    lines: bool = True,
    log_x: bool = False,
    most: float | None = None,
    whole_x: bool = False,
) -> str:
    """A line chart, or with ``lines=False`` a scatter plot (each point labelled, with its interval).

    Args:
        series: At most six; an empty plot ("" is returned) if none has points.
        x_label: With unit.
        y_label: With unit.
        lines: Join the points of a series.
        log_x: Logarithmic x; points at or below 0 are left out.
        most: Where y ends at most, such as 100 for percentages.
        whole_x: Only whole numbers are ticks of x.

    Returns:
        The SVG element as text.
    """
    kept = [
        Series(s.name, tuple(p for p in s.points if math.isfinite(p.y) and (not log_x or p.x > 0)))
        for s in series
    ]
    points = [p for s in kept for p in s.points]
    if not points:
        return ""
    y = _y_scale(points, most)
    x = _x_scale(points, log_x, _left(y))
    body = [_grid(x, y, x_label, y_label, whole_x)]
    for index, one in enumerate(kept):
        colour = f"c{index % NUM_COLOURS + 1}"
        if lines and len(one.points) > 1:
            path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in one.points)
            body.append(f'<polyline class="line {colour}" points="{path}"/>')
        body += [_mark(p, x, y, colour, small=lines, name=one.name) for p in one.points]
    if not lines:
        body += _labels(kept, x, y)
    svg = _svg("".join(body), _HEIGHT, f"{y_label} against {x_label}")
    return svg + (_legend([s.name for s in kept]) if lines else "")


def bars(rows: Sequence[Bar], *, label: str) -> str:
    """Horizontal bars, one a row, with a pale bar for the whole behind each.

    Args:
        rows: From top to bottom; "" is returned if empty.
        label: What the lengths mean, with unit (read out by screen readers).

    Returns:
        The SVG element as text.
    """
    if not rows:
        return ""
    left, right = 168, 12 + _CHARACTER * max(len(bar.text) for bar in rows)
    longest = max((max(bar.value, bar.whole or 0.0) for bar in rows), default=0.0) or 1.0
    room = WIDTH - left - right
    body = []
    for index, bar in enumerate(rows):
        top = 4 + index * _ROW
        middle = top + _ROW / 2
        tip = f"<title>{escape(bar.label)}: {escape(bar.text)}</title>"
        body.append(f'<text class="tick" x="{left - 8}" y="{middle + 4}" text-anchor="end">')
        body.append(f"{escape(shorten(bar.label, left - 8))}{tip}</text>")
        if bar.whole is not None:
            body.append(_rect(left, top + 4, bar.whole / longest * room, _ROW - 8, "whole", tip))
            end = left + max(bar.whole, bar.value) / longest * room
        else:
            end = left + max(bar.value, 0.0) / longest * room
        body.append(_rect(left, top + 4, max(bar.value, 0.0) / longest * room, _ROW - 8, "c1", tip))
        body.append(f'<text class="value" x="{end + 6:.1f}" y="{middle + 4}">{escape(bar.text)}</text>')
    return _svg("".join(body), 8 + len(rows) * _ROW, label)


def _svg(body: str, height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _rect(x: float, y: float, width: float, height: float, colour: str, inside: str) -> str:
    return (
        f'<rect class="bar {colour}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" '
        f'height="{height:g}" rx="2">{inside}</rect>'
    )


def _left(y: Scale) -> float:
    """Where the plot begins: beside the longest number of y."""
    return max(_LEFT, _Y_LABEL + _CHARACTER * max(len(_short(value)) for value in y.ticks()))


def _x_scale(points: Sequence[Point], log: bool, left: float) -> Scale:
    low, high = min(p.x for p in points), max(p.x for p in points)
    if log:
        low, high = low / 1.6, high * 1.6
    elif low == high:
        # of whole numbers, such as the one epoch of a run, no other is in it
        low, high = low - 0.5, high + 0.5
    return Scale(low, high, left, WIDTH - _RIGHT, log)


def _y_scale(points: Sequence[Point], most: float | None) -> Scale:
    low = min(p.y if p.low is None else p.low for p in points)
    high = max(p.y if p.high is None else p.high for p in points)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    top = high + margin if most is None else max(high, min(high + margin, most))
    return Scale(low - margin, top, _HEIGHT - _BOTTOM, _TOP)


def _grid(x: Scale, y: Scale, x_label: str, y_label: str, whole_x: bool) -> str:
    base, left = _HEIGHT - _BOTTOM, x.start
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{left:g}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6:g}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    for value in (t for t in x.ticks() if not whole_x or abs(t - round(t)) < 1e-9):
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{base + 17}" text-anchor="middle">'
            f"{_short(value)}</text>"
        )
    parts.append(f'<line class="axis" x1="{left:g}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (left + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis-label" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    across = (base + _TOP) / 2
    parts.append(
        f'<text class="axis-label" transform="rotate(-90)" x="{-across}" y="13" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _mark(point: Point, x: Scale, y: Scale, colour: str, *, small: bool, name: str) -> str:
    at_x, at_y = x(point.x), y(point.y)
    parts = []
    if point.low is not None and point.high is not None:
        parts.append(
            f'<line class="line {colour}" x1="{at_x:.1f}" x2="{at_x:.1f}" '
            f'y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
        )
    title = escape(point.title or f"{name}: {point.x:g}, {point.y:g}")
    radius = 2.4 if small else 5
    parts.append(
        f'<circle class="dot {colour}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="{radius}">'
        f"<title>{title}</title></circle>"
    )
    return "".join(parts)


def _labels(series: Sequence[Series], x: Scale, y: Scale) -> list[str]:
    """Names beside the points, in their colours: as near as they lie neither on a point nor on a name, nor on
    the numbers of an axis; where there is room near by, not across an interval either.
    """
    points = [(p, f"c{index % NUM_COLOURS + 1}") for index, s in enumerate(series) for p in s.points]
    # x start, x end, y of the text: of the dots, and of the labels already placed
    taken = [(x(p.x) - _DOT, x(p.x) + _DOT, y(p.y) + 4) for p, _ in points]
    intervals = [(x(p.x), y(p.high), y(p.low)) for p, _ in points if p.low is not None and p.high is not None]
    parts = []
    for point, colour in sorted(points, key=lambda pair: y(pair[0].y)):
        width = _CHARACTER * len(point.label)

        def free(start: float, at: float, width: float = width) -> bool:
            inside = start >= x.start and start + width <= WIDTH and _LINE <= at <= y.start - _ABOVE
            return inside and not any(
                start < end and begin < start + width and abs(at - other) < _LINE
                for begin, end, other in taken
            )

        def clear(start: float, at: float, width: float = width) -> bool:
            return not any(
                start < across < start + width and top - _ABOVE < at < bottom + _LINE
                for across, top, bottom in intervals
            )

        sides = (x(point.x) + 9, "start"), (x(point.x) - 9 - width, "end")
        places = [
            (start, y(point.y) + 4 + move * _LINE, anchor)
            for move in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5)
            for start, anchor in sides
        ]
        room = [place for place in places if free(*place[:2])] or places[:1]
        # farther off, whose is it?
        near = [place for place in room if abs(place[1] - room[0][1]) <= 2 * _LINE]
        start, at, anchor = next((place for place in near if clear(*place[:2])), room[0])
        taken.append((start, start + width, at))
        edge = start if anchor == "start" else start + width
        parts.append(
            f'<text class="value {colour}" x="{edge:.1f}" y="{at:.1f}" text-anchor="{anchor}">'
            f"{escape(point.label)}</text>"
        )
    return parts


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = (
        f'<span><i class="key c{index % NUM_COLOURS + 1}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def shorten(text: str, room: float) -> str:
    """The end of a text that fits into so many viewBox units, on a phone too."""
    length = int(room / _CHARACTER)
    return text if len(text) <= length else "…" + text[-(length - 1) :]
