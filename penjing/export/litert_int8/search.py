"""Which operations stay in float: as few and as cheap as keep the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from penjing.export.litert_int8.compare import Judge, Quality
from penjing.export.litert_int8.graph import Operation

GOOD = Quality(agreement=0.98, snr=20.0)
"""What is bought for up to `CHEAP` of the multiplications."""
ENOUGH = Quality(agreement=0.92, snr=15.0)
"""What is bought at any price."""
CHEAP = 0.1

PARTS = 8
"""Parts of the graph whose noise is measured first; the noisiest are split further."""
MEASUREMENTS = 28
SAMPLES = 16
"""Samples of one such measurement."""
NEGLIGIBLE = 0.01
"""Share of the noise below which a part is not split."""


@dataclass(frozen=True)
class Part:
    """Neighbouring operations, and the noise that they alone cause at the output, relative to the signal."""

    operations: tuple[Operation, ...]
    noise: float

    @cached_property
    def macs(self) -> int:
        """Multiplications of a sample."""
        return sum(op.macs for op in self.operations)


@dataclass(frozen=True)
class Choice:
    """A file and what was kept out of int8 for it.

    Attributes:
        content: The file.
        kept: Operations in float, in the graph's order.
        quality: Against the float file.
    """

    content: bytes
    kept: tuple[Operation, ...]
    quality: Quality


class Search:
    """Finds what has to stay in float.

    Args:
        quantize: Makes a file in which the operations of these names stay in float.
        judge: Compares files.
        operations: Those that may be chosen, in the graph's order; at least one.
    """

    def __init__(
        self,
        quantize: Callable[[frozenset[str]], bytes],
        judge: Judge,
        operations: Sequence[Operation],
    ) -> None:
        self._quantize, self._judge, self._operations = quantize, judge, list(operations)
        self._macs = sum(op.macs for op in operations) or 1

    def run(self) -> Choice:
        """The first of these that keeps the answers: nothing in float; what gives the output; the parts with
        the most noise for their price, up to `CHEAP`; those at any price.

        The noise of a part is what the output has when that part alone is in int8.
        """
        tried = [self._try(())]
        if not tried[0].quality.holds(GOOD):
            tried.append(self._try(self._last()))
        if tried[-1].quality.holds(GOOD):
            return tried[-1]
        parts = self._measured()
        cheap, spent = [], 0
        for part in parts:
            if spent + part.macs <= CHEAP * self._macs:
                cheap.append(part)
                spent += part.macs
        tried.append(self._fewest(cheap, GOOD))
        if not tried[-1].quality.holds(GOOD) and not max(tried, key=_order).quality.holds(ENOUGH):
            tried.append(self._fewest(parts, ENOUGH))
        return max(tried, key=_order)

    def _try(self, kept: Iterable[Operation]) -> Choice:
        names = frozenset(op.name for op in kept)
        content = self._quantize(names)
        inside = tuple(op for op in self._operations if op.name in names)
        return Choice(content, inside, self._judge(content))

    def _last(self) -> list[Operation]:
        """The last product and what follows it."""
        products = [i for i, op in enumerate(self._operations) if op.macs]
        return self._operations[products[-1] :] if products else self._operations[-1:]

    def _measured(self) -> list[Part]:
        """Parts of the graph, those with the most noise for their price first."""
        size = -(-len(self._operations) // PARTS)
        parts = [self._part(self._operations[i : i + size]) for i in range(0, len(self._operations), size)]
        for _ in range((MEASUREMENTS - PARTS) // 2):
            total = sum(part.noise for part in parts)
            wide = [part for part in parts if len(part.operations) > 1 and part.noise > NEGLIGIBLE * total]
            if not wide:
                break
            widest = max(wide, key=lambda part: part.noise)
            half = len(widest.operations) // 2
            at = parts.index(widest)
            parts[at : at + 1] = [self._part(widest.operations[:half]), self._part(widest.operations[half:])]
        return sorted(parts, key=lambda part: -part.noise / self._price(part))

    def _price(self, part: Part) -> float:
        """Share of the multiplications; what has none costs a little too (it changes types)."""
        return part.macs / self._macs + 0.1 * len(part.operations) / len(self._operations)

    def _part(self, operations: Sequence[Operation]) -> Part:
        inside = {op.name for op in operations}
        others = frozenset(op.name for op in self._operations if op.name not in inside)
        return Part(tuple(operations), self._judge.noise(self._quantize(others), SAMPLES))

    def _fewest(self, parts: Sequence[Part], least: Quality) -> Choice:
        """The file with the fewest of the first ``parts`` in float that holds ``least``; if none does, with
        all of them."""

        def first(count: int) -> Choice:
            return self._try(op for part in parts[:count] for op in part.operations)

        below, count = 0, min(1, len(parts))
        found = first(count)
        while not found.quality.holds(least) and count < len(parts):
            below, count = count, min(2 * count, len(parts))
            found = first(count)
        while found.quality.holds(least) and count - below > 1:
            middle = (below + count) // 2
            now = first(middle)
            if now.quality.holds(least):
                found, count = now, middle
            else:
                below = middle
        return found


def _order(choice: Choice) -> tuple[bool, bool, Quality]:
    return choice.quality.holds(GOOD), choice.quality.holds(ENOUGH), choice.quality
