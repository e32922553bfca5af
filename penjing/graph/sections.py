"""Cut a sequence of operations wherever a single value goes on: the blocks that a network is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Section:
    """A part of a network that one value enters and one leaves.

    Attributes:
        ends: What leaves: one value, or the network's outputs.
        steps: Positions of its operations, those before it that it needs besides included.
        layers: Its layers, by the value that each makes.
    """

    ends: tuple[str, ...]
    steps: tuple[int, ...]
    layers: tuple[str, ...]


def _never(_: int) -> bool:
    return False


def _anywhere(_: str) -> bool:
    return True


def find_sections(
    made: Sequence[Sequence[str]],
    read: Sequence[Collection[str]],
    outputs: Collection[str],
    layers: Collection[str],
    *,
    least: int,
    may_end: Callable[[str], bool] = _anywhere,
    goes_along: Callable[[int], bool] = _never,
) -> list[Section]:
    """Cut behind every so many layers, wherever a single value that depends on a layer goes on.

    What depends on no layer (masks, sizes, embeddings) belongs to every section that needs it.

    Args:
        made: Names of the values that each operation makes, in the order of computation; "" is none.
        read: Names of the values that each reads.
        outputs: The network's.
        layers: Values that are a layer's output.
        least: Fewest layers of a section; the last one may have fewer.
        may_end: Whether a section may end in this value.
        goes_along: Whether this operation still belongs to the section that could end before it.
    """
    source = {name: index for index, names in enumerate(made) for name in names if name}
    last = dict.fromkeys(outputs, len(made))
    for index, names in enumerate(read):
        for name in names:
            last[name] = max(last.get(name, -1), index)
    dependent: set[str] = set()
    for names, sources in zip(made, read, strict=True):
        if not dependent.isdisjoint(sources) or not set(names).isdisjoint(layers):
            dependent.update(name for name in names if name)
    behind = [index for index, names in enumerate(made) if not dependent.isdisjoint(names)]
    found: list[Section] = []
    live: set[str] = set()
    inside: list[int] = []
    for index, following in zip_longest(behind, behind[1:]):
        inside.append(index)
        live = {name for name in live | (dependent & set(made[index])) if last.get(name, -1) > index}
        held = tuple(name for i in inside for name in made[i] if name in layers)
        apart = len(live) == 1 and len(held) >= least and may_end(*live)
        if following is None or (apart and not goes_along(following)):
            if held:
                ends = tuple(sorted(live)) or tuple(made[index][:1])
                found.append(Section(ends, _needed(read, inside, source, dependent), held))
            inside = []
    return found


def _needed(
    read: Sequence[Collection[str]], inside: Sequence[int], source: dict[str, int], dependent: set[str]
) -> tuple[int, ...]:
    """``inside`` and the operations before them that depend on no layer and that they read from."""
    needed, waiting = set(inside), list(inside)
    while waiting:
        for name in read[waiting.pop()]:
            if name in source and name not in dependent and source[name] not in needed:
                needed.add(source[name])
                waiting.append(source[name])
    return tuple(sorted(needed))
