"""Sizes that a traced forward holds as numbers though its inputs have them free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val") if node.name == placeholder else None
        for dim in dims if isinstance(value, torch.Tensor) else ():
            size = value.shape[dim]  # type: ignore[union-attr]
            guard = _only_here(size) if isinstance(size, torch.SymInt) else None
            if guard is not None:
                yield FixedSize(dim, _place(guard))


def _only_here(size: torch.SymInt) -> Any:
    """The equation that no other size fulfils; None where there is none."""
    node: Any = size.node
    symbol, here = node.expr, int(node.hint)
    if not symbol.is_Symbol:
        return None
    others = {2 * here, here // 2, 2 * here - 1, 3 * here, 4 * here - 3, here + 1, here + 8, here + 32}
    for guard in node.shape_env.guards:
        if not isinstance(guard.expr, sympy.Eq) or guard.expr.free_symbols != {symbol}:
            continue
        if not any(guard.expr.subs(symbol, other) == sympy.true for other in others - {here, 0, 1}):
            return guard
    return None


def _place(guard: Any) -> str:
    frame = getattr(guard.sloc, "framework_loc", None)
    if frame is None or not is_users(frame.filename):
        return ""
    return f" at {short_place(frame.filename, frame.lineno)}"
