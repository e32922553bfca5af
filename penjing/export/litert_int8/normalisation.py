"""The arithmetic of normalisations in a graph: what a layer, group or RMS norm is taken apart into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from penjing.export.litert_int8.graph import MOVES, Operation

ROOTS = frozenset(("RSQRT", "SQRT"))
_BETWEEN = frozenset(("ADD", "MUL", "DIV", "MAXIMUM")) | MOVES
"""What may stand between a mean of squares and its root, or the root and what it scales: ε, a factor, a
change of shape."""
_MEANS = frozenset(("MEAN", "SUM"))
_SQUARES = frozenset(("SQUARED_DIFFERENCE", "SQUARE", "MUL", "POW"))
_SCALES = frozenset(("MUL", "DIV"))


def normalisations(operations: Sequence[Operation]) -> list[list[Operation]]:
    """The operations of each normalisation, found from its root backwards and forwards.

    A variance spans the square of what its input spans, and its root is divided by: in 8 linear bits every
    position of small variance is lost. In a graph it is RSQRT or SQRT of a MEAN of squares, perhaps with ε or
    a change of shape in between; what the root scales, and the difference from the mean, belong to it.

    Args:
        operations: Of a float file.

    Returns:
        A list for each root, in the graph's order.
    """
    graph = _Graph(operations)
    found = []
    for root in operations:
        statistics = list(graph.statistics(root)) if root.kind in ROOTS else []
        if statistics:
            scaled = list(graph.scaled(root))
            centred = [op for scale in scaled for op in graph.before(scale) if op.kind == "SUB"]
            means = [op for sub in centred for op in graph.before(sub) if op.kind in _MEANS]
            members = {op.name for op in (root, *statistics, *scaled, *centred, *means)}
            found.append([op for op in operations if op.name in members])
    return found


class _Graph:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self._makers = {tensor: op for op in operations for tensor in op.outputs}
        self._readers: dict[int, list[Operation]] = defaultdict(list)
        for op in operations:
            for tensor in op.inputs:
                self._readers[tensor].append(op)

    def before(self, op: Operation) -> list[Operation]:
        """The operations that make its inputs."""
        return [self._makers[i] for i in op.inputs if i in self._makers]

    def statistics(self, root: Operation) -> Iterator[Operation]:
        """From the root back to the squares and the mean that they were taken from; nothing if it is the root
        of something else."""
        path, op = [], root
        while op.kind not in _MEANS:
            inputs = self.before(op)
            if len(inputs) != 1 or (op is not root and op.kind not in _BETWEEN):
                return
            path.append(op)
            op = inputs[0]
        for square in self.before(op):
            if square.kind in _SQUARES and (square.kind != "MUL" or len(set(square.inputs)) == 1):
                yield from (*path[1:], op, square)
                yield from (maker for maker in self.before(square) if maker.kind in (*_MEANS, "SUB"))

    def scaled(self, root: Operation) -> Iterator[Operation]:
        """What the root multiplies or divides."""
        for tensor in root.outputs:
            for reader in self._readers[tensor]:
                if reader.kind in _SCALES and len(self.before(reader)) > 1:
                    yield reader
                elif reader.kind in _BETWEEN:
                    yield reader
                    yield from self.scaled(reader)
