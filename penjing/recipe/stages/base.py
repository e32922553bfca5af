"""What a stage is, and the small things all stages do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penjing.events import Listener
from penjing.recipe.workspace import Workspace


@dataclass(frozen=True)
class Output:
    """What a stage gives.

    Attributes:
        result: Numbers and facts, the same whenever the run is repeated; plain JSON.
        timing: Seconds and latencies.
        files: What it wrote, relative to the run folder.
    """

    result: dict[str, Any]
    timing: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One step of a run. It reads files, writes files, and can be done again with the same outcome.

    Attributes:
        name: Unique in a run; also names its marker and its log lines.
        title: What people read while it works.
        work: Does it.
        config: The part of the recipe it depends on, as plain data.
        requires: Stages whose outputs it reads.
    """

    name: str
    title: str
    work: Callable[[Workspace, Listener], Output]
    config: Any = None
    requires: tuple[str, ...] = ()


def plain(value: Any) -> Any:
    """Plain JSON: tuples as lists, configs as dicts, numbers that are not finite as None."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)
