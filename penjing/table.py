"""Tables of rules by op name, filled by decorators: a new op is one decorated function."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TypeVar

Rule = TypeVar("Rule")


def adder(table: MutableMapping[str, Rule], what: str = "") -> Callable[..., Callable[[Rule], Rule]]:
    """What puts rules into a table: called with names, it gives the decorator for a rule of those names.

    Two rules under one name are a ``ValueError``.

    Args:
        table: Takes the rules.
        what: What the error puts before a name, such as ``"ONNX op "``.
    """

    def into(*names: str) -> Callable[[Rule], Rule]:
        def add(rule: Rule) -> Rule:
            for name in names:
                if name in table:
                    raise ValueError(f"two rules for {what}{name}")
                table[name] = rule
            return rule

        return add

    return into
