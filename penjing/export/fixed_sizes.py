"""Sizes that a traced forward holds as numbers though its inputs have them free."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch

from penjing.graph.source import is_users, short_place


@dataclass(frozen=True)
class FixedSize:
    """A free size that the forward computed a number of.

    Attributes:
        dim: The input's dimension.
        at: ``" at folder/file.py:line"``, or "".
    """

    dim: int
    at: str


def fixed_sizes(
    program: torch.export.ExportedProgram, placeholder: str, dims: Iterable[int]
) -> Iterator[FixedSize]:
    """Which of these sizes the trace takes for what they are in the example: torch notes what it computed
    from them (``int((size - 1) / 8 * zoom + 1)`` is 65), but holds no one to it. What other sizes fulfil as
    well, such as being a multiple of eight, fixes nothing.

    Args:
        program: Exported with free dimensions.
        placeholder: What the program calls the input.
        dims: Its dimensions that are to be free.
    """
    holders = list(program.graph.find_nodes(op="placeholder"))
    values = {node.name: value for node in holders if isinstance(value := node.meta.get("val"), torch.Tensor)}
    sizes: list[Any] = [size for value in values.values() for size in value.shape]
    free: list[Any] = [size.node for size in sizes if isinstance(size, torch.SymInt)]
    here = {node.expr: int(node.hint) for node in free if node.expr.is_Symbol}
    for dim in dims if placeholder in values else ():
        size: Any = values[placeholder].shape[dim]
        guard = _only_here(size.node, here) if isinstance(size, torch.SymInt) else None
        if guard is not None:
            yield FixedSize(dim, _place(guard))


def _only_here(size: Any, here: Mapping[Any, int]) -> Any:
    """The equation that holds in the example and nowhere far from it; None where there is none.

    Sizes close by prove nothing: from ``size // 14`` come the same four windows for 57 as for 56.
    """
    symbol = size.expr
    if symbol not in here:
        return None
    for guard in size.shape_env.guards:
        symbols = guard.expr.free_symbols
        if not isinstance(guard.expr, sympy.Eq) or symbol not in symbols or not symbols <= here.keys():
            continue
        if not any(guard.expr.subs(other) == sympy.true for other in _far(symbol, symbols, here)):
            return guard
    return None


def _far(symbol: Any, symbols: Collection[Any], here: Mapping[Any, int]) -> Iterator[dict[Any, int]]:
    """Other values of these sizes: of this one alone, then of all at once, by a factor or so many more."""
    own = here[symbol]
    for moved in ({symbol},) if len(symbols) == 1 else ({symbol}, set(symbols)):
        for factor in (2, 3):
            yield {one: here[one] * (factor if one in moved else 1) for one in symbols}
        yield {one: 4 * here[one] - 3 if one in moved else here[one] for one in symbols}
        for more in range(own - 1, own + 128):  # whatever is asked of the rest of a division
            yield {one: here[one] + (more if one in moved else 0) for one in symbols}


def _place(guard: Any) -> str:
    frame = getattr(guard.sloc, "framework_loc", None)
    if frame is None or not is_users(frame.filename):
        return ""
    return f" at {short_place(frame.filename, frame.lineno)}"
