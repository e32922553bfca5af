"""Layers that are called several times, and would have to be fitted before themselves.

All calls of a layer are fitted at once, so all that they read must be known first. Where one call reads what
another gave, or two layers stand in turn before one another, there is no such order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from penjing.graph import Graph
from penjing.prune.writes import find_writes

if TYPE_CHECKING:
    from penjing.prune.places import Place


def without_circles(graph: Graph, places: Mapping[str, Place]) -> dict[str, Place]:
    """The places that can be fitted one after the other.

    A layer of several calls in a circle first gives up its residual sums as targets, then its place. Those of
    one call are in a circle by their sums only, and that is settled when they are fitted.
    """
    kept = dict(places)
    if all(len(place.calls) == 1 for place in places.values()):
        return kept
    if find_writes(graph.module.graph).first:  # values then depend on more than what is read
        return {name: place for name, place in kept.items() if len(place.calls) == 1}
    for name in _in_circles(graph, kept):
        calls = [
            replace(call, behind=replace(call.behind, total=None, other=None)) for call in kept[name].calls
        ]
        kept[name] = replace(kept[name], calls=tuple(calls))
    for name in _in_circles(graph, kept):
        del kept[name]
    return kept


def _in_circles(graph: Graph, places: Mapping[str, Place]) -> list[str]:
    """Layers of several calls that need, by way of others or not, what they give themselves."""
    names = list(places)
    gives = {call.node: 1 << at for at, name in enumerate(names) for call in places[name].calls}
    above: dict[fx.Node, int] = {}  # the layers that a value depends on, a bit for each
    for node in graph.module.graph.nodes:
        above[node] = gives.get(node, 0)
        for source in node.all_input_nodes:
            above[node] |= above[source]
    needs = [0] * len(names)
    for at, name in enumerate(names):
        for call in places[name].calls:
            for node in call.needed:
                needs[at] |= above[node]
    for through in range(len(names)):
        for at in range(len(names)):
            if needs[at] >> through & 1:
                needs[at] |= needs[through]
    return [name for at, name in enumerate(names) if len(places[name].calls) > 1 and needs[at] >> at & 1]
