"""What a result shows of itself, printed or in a notebook: one sentence and a short table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

MOST_ROWS = 12
_TEXT_WIDTH = 1000
"""As wide as it is: where a terminal is narrower, it breaks the lines."""


@dataclass(frozen=True)
class Brief:
    """A sentence and a table.

    Attributes:
        title: The outcome.
        headers: Names of the columns.
        rows: Cells as text; `MOST_ROWS` of them are shown, and how many more there are.
    """

    title: str
    headers: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()

    @property
    def rest(self) -> str:
        """``"and 20 more"``, or ""."""
        return f"and {len(self.rows) - MOST_ROWS} more" if len(self.rows) > MOST_ROWS else ""

    def to_html(self) -> str:
        """A paragraph and a table, without style of their own."""
        parts = [f"<p>{escape(self.title)}</p>"]
        if self.rows:
            parts.append(f"<table><thead>{_row(self.headers, 'th')}</thead><tbody>")
            parts += [_row(cells, "td") for cells in self.rows[:MOST_ROWS]]
            parts.append("</tbody></table>")
        if self.rest:
            parts.append(f"<p>{self.rest}</p>")
        return "".join(parts)

    def to_rich(self) -> Group:
        """The same for `rich.print`."""
        from rich.console import Group, RenderableType
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = [Text(self.title)]
        if self.rows:
            table = Table(*self.headers)
            for cells in self.rows[:MOST_ROWS]:
                table.add_row(*map(Text, cells))
            parts.append(table)
        return Group(*parts, *([Text(self.rest)] if self.rest else ()))

    def to_text(self) -> str:
        """The same for ``print``."""
        from rich.console import Console

        console = Console(file=StringIO(), width=_TEXT_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(self.to_rich())
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


class InShort:
    """A result that shows itself by its `in_short`, as ``repr``, too: a dataclass would print networks."""

    def in_short(self) -> Brief:
        """The outcome in a sentence and a short table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.in_short().to_text()

    def _repr_html_(self) -> str:
        return self.in_short().to_html()

    def __rich__(self) -> Group:
        return self.in_short().to_rich()


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
