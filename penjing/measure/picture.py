"""The picture of a network, as SVG without script: one bar for each layer, coloured by what can be pruned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penjing.measure.inspect import Inspection

_ROW, _BAR, _LANE = 26, 14, 9
_WIDTH = 720
_CHARACTER = 6.9  # mean width of a character in a wide sans-serif font of 12 px
_STATES = {
    "prunable": "outputs can be pruned",
    "partly": "some outputs can be pruned",
    "inputs": "only inputs can shrink",
    "fixed": "stays as it is",
}
_STYLE = """
.pj{font:12px system-ui,sans-serif;--prunable:#2f8f5b;--partly:#b58a1b;--inputs:#4a7fc1;--fixed:#9a9a9a;
--ink:#222;--line:#aaa}
@media (prefers-color-scheme:dark){.pj{--prunable:#56c088;--partly:#e0b94d;--inputs:#7fb0ec;--fixed:#777;
--ink:#eee;--line:#666}}
.pj text{fill:var(--ink)}.pj path{fill:none;stroke:var(--line)}
.pj .prunable{fill:var(--prunable)}.pj .partly{fill:var(--partly)}.pj .inputs{fill:var(--inputs)}
.pj .fixed{fill:var(--fixed)}
"""
_PAGE_STYLE = """
:root{color-scheme:light dark}body{font:14px system-ui,sans-serif;margin:1rem auto;max-width:60rem;
padding:0 1rem}svg{max-width:100%;height:auto}.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #8884}td.number{text-align:right}
"""


def draw(inspection: Inspection) -> str:
    """Layers from top to bottom in order of execution; a bar is as long as the root of its parameters.

    Arcs at the left lead to a layer from those it reads, where that is not simply the one above, and from
    those that meet its output, such as the start of a residual block.
    """
    layers = inspection.layers
    at = {layer.name: row for row, layer in enumerate(layers)}
    arcs = [
        (at[source], row)
        for row, layer in enumerate(layers)
        for source in (*layer.reads, *layer.joined_by)
        if source in at and at[source] < row - (source in layer.reads)
    ]
    lanes = _lanes(arcs)
    left = 12 + _LANE * (max(lanes.values(), default=-1) + 1)
    top = 30
    most = max((layer.num_params for layer in layers), default=1) or 1
    longest = _WIDTH - left - 330
    parts = [_legend()]
    for (low, high), lane in lanes.items():
        start, end = (top + row * _ROW + _BAR / 2 for row in (low, high))
        x = left - 4 - _LANE * (lane + 1)
        parts.append(f'<path d="M{left - 3} {start}H{x}V{end}H{left - 3}"/>')
    for row, layer in enumerate(layers):
        y = top + row * _ROW
        if row and layers[row - 1].name in layer.reads:
            parts.append(f'<path d="M{left + 3} {y - _ROW + _BAR}V{y}"/>')
        length = max(3.0, longest * math.sqrt(layer.num_params / most))
        what = (
            f"{layer.name}: {_STATES[layer.state]}; {layer.num_params:,} parameters, {layer.num_macs:,} MACs"
        )
        parts.append(
            f'<rect class="{layer.state}" x="{left}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2">'
            f"<title>{escape(what)}</title></rect>"
            f'<text x="{left + length + 6:.1f}" y="{y + _BAR - 3}">{escape(layer.name)} '
            f"· {_human(layer.num_params)} params · {_human(layer.num_macs)} MACs</text>"
        )
    height = top + len(layers) * _ROW + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pj" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" role="img" aria-label="Layers by what can be pruned">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>"
    )


def page(inspection: Inspection, headline: str) -> str:
    """The picture, the groups and the frozen dimensions as one HTML page."""
    from penjing.measure.inspect import FROZEN_HEADER, GROUP_HEADER

    notes = "".join(f"<p>{escape(note)}</p>" for note in inspection.notes)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">'
        f"<title>What can be pruned</title><style>{_PAGE_STYLE}</style><h1>What can be pruned</h1>"
        f"<p>{escape(headline)}</p>{notes}{draw(inspection)}"
        f"<h2>Groups</h2>{_table(GROUP_HEADER, inspection.group_rows())}"
        f"<h2>Frozen</h2>{_table(FROZEN_HEADER, inspection.frozen_rows())}</html>"
    )


def _lanes(arcs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Lane of each arc, short arcs innermost, so that no two in one lane overlap."""
    lanes: dict[tuple[int, int], int] = {}
    for low, high in sorted(set(arcs), key=lambda arc: (arc[1] - arc[0], arc)):
        lane = 0
        while any(other == lane and low < b and a < high for (a, b), other in lanes.items()):
            lane += 1
        lanes[low, high] = lane
    return lanes


def _legend() -> str:
    widths = [25 + _CHARACTER * len(text) for text in _STATES.values()]
    starts = accumulate(widths[:-1], initial=12.0)
    return "".join(
        f'<rect class="{state}" x="{x:g}" y="4" width="10" height="10" rx="2"/>'
        f'<text x="{x + 15:g}" y="13">{escape(text)}</text>'
        for x, (state, text) in zip(starts, _STATES.items(), strict=True)
    )


def _human(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=number' if cell.replace(',', '').isdigit() else ''}>{escape(cell)}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
