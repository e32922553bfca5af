"""Ops that choose among values, as the best queries of a detector or the experts of a mixture: where the
values are equal but for rounding, two right runtimes choose differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

ROUNDING = 1e-5
"""Up to this distance, relative to the largest, rounding may decide which of two values is larger."""

_CHOOSERS = {"TopK": -1, "ArgMax": 0, "ArgMin": 0}
"""Op → the axis it chooses along where the file does not say."""


def chosen_by_rounding(
    graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], values: Mapping[str, np.ndarray]
) -> tuple[onnx.NodeProto, float] | None:
    """The op that chooses among equals, whose indices ``nodes`` read; with the smallest distance of two
    values it had to tell apart, relative to the largest of them. None where there is no such op.

    Args:
        graph: The file's.
        nodes: The first op that differs, and those before it whose values only the file has.
        values: The file's float values, by name; what is not in here is an index, or counted from one.
    """
    makers = {name: node for node in graph.node for name in node.output}
    waiting, seen = [*nodes], set[str]()
    while waiting:
        node = waiting.pop()
        if node.op_type in _CHOOSERS and node.input[0] in values:
            gap = _smallest_gap(node, values[node.input[0]], values)
            if gap <= ROUNDING:
                return node, gap
        for name in node.input:
            if name in makers and name not in seen and name not in values:
                seen.add(name)
                waiting.append(makers[name])
    return None


def _smallest_gap(node: onnx.NodeProto, x: np.ndarray, values: Mapping[str, np.ndarray]) -> float:
    """The smallest distance between neighbours among what was taken and the next; infinite for none."""
    said = {attribute.name: attribute.i for attribute in node.attribute}
    axis = said.get("axis", _CHOOSERS[node.op_type])
    if not x.size or not x.ndim:
        return float("inf")
    taken = values[node.output[0]].shape[axis] if node.output[0] in values else 1
    smallest = node.op_type == "ArgMin" or not said.get("largest", 1)
    ordered = np.sort(x.astype(np.float64) if smallest else -x.astype(np.float64), axis=axis)
    with np.errstate(invalid="ignore"):  # masked ones are infinite
        gaps = np.diff(ordered, axis=axis).take(range(min(taken, x.shape[axis] - 1)), axis=axis)
    finite = np.isfinite(gaps)
    if not finite.any():
        return float("inf")
    return float(gaps[finite].min() / max(np.abs(ordered[np.isfinite(ordered)]).max(), 1e-30))
