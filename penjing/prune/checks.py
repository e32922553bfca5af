"""What is refused before anything is traced: models that are none, patterns that match nothing."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from penjing.errors import PruneError
from penjing.graph.solve import matches


def check_model(model: Any) -> None:
    """Refuse what is no network.

    Raises:
        PruneError: naming its type.
    """
    if not isinstance(model, nn.Module):
        exported = type(model).__name__ == "ExportedProgram"
        instead = " or its .pt2 file (load_model with trust=True)" if exported else ""
        raise PruneError(f"the model is a {type(model).__name__}", remedy=f"Give a torch.nn.Module{instead}")


def names_one(pattern: str, params: Sequence[str]) -> bool:
    """Whether a glob matches a parameter, a module that holds one, or a group's id that begins with one."""
    return any(matches(name, pattern.partition(":")[0]) for name in params)


def checked_patterns(patterns: str | Sequence[str], model: nn.Module, what: str = "ignore") -> Sequence[str]:
    """The patterns, each of which matches a parameter: any other is a misspelling.

    Raises:
        PruneError: naming the pattern, and the parameter that may be meant.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not names_one(pattern, names):
            near = difflib.get_close_matches(pattern, names, n=1)
            raise PruneError(
                f"{what} pattern {pattern!r} matches no parameter",
                remedy=f"Did you mean {near[0]!r}?" if near else f"Names look like {names[0]!r}",
            )
    return patterns
