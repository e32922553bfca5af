"""The heat map of a sensitivity: groups down, ratios across, darker where more is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from penjing.report import text
from penjing.report.svg import shorten

_CELL_H, _LEFT, _TOP = 14, 200, 18
_WIDTH = 480
MEASURES = {
    "kl": "divergence of the outputs, nats",
    "mse": "square error of the outputs over their variance",
    "metric": "loss of the metric",
}


def heat_map(sensed: Mapping[str, Any]) -> str:
    """An SVG of `Sensitivity.to_dict()`: colour by the logarithm of the damage, numbers in the tooltips."""
    groups, ratios, damage = sensed["groups"], sensed["ratios"], sensed["damage"]
    if not groups or not ratios:
        return ""
    width = (_WIDTH - _LEFT) / len(ratios)
    shade = _shades([value for row in damage for value in row])
    parts = [
        f'<text x="{_LEFT + (at + 0.5) * width:.1f}" y="12" text-anchor="middle">{100 * ratio:g}%</text>'
        for at, ratio in enumerate(ratios)
    ]
    for row, (name, values) in enumerate(zip(groups, damage, strict=True)):
        y = _TOP + row * _CELL_H
        shown = shorten(text.group(name), _LEFT - 6)
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 10}" text-anchor="end">{escape(shown)}</text>')
        for at, value in enumerate(values):
            title = f"{name}, {100 * ratios[at]:g}% removed: {value:.3g}"
            parts.append(
                f'<rect class="heat" x="{_LEFT + at * width:.1f}" y="{y}" width="{width - 1:.1f}" '
                f'height="{_CELL_H - 1}" fill-opacity="{shade(value):.3f}">'
                f"<title>{escape(title)}</title></rect>"
            )
    height = _TOP + len(groups) * _CELL_H + 4
    label = f"sensitivity: {MEASURES.get(sensed['measure'], sensed['measure'])}"
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _shades(values: list[float]) -> Any:
    """Opacity of a damage: 0.04 for none, 1 for the largest, by logarithm over at most four decades."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return lambda value: 0.04
    low = max(min((v for v in values if v > 0), default=largest), largest * 1e-4)
    span = math.log(largest / low) or 1.0
    return lambda value: 0.04 + 0.96 * (math.log(max(value, low) / low) / span if value > 0 else 0.0)
