"""Tables of rules by op name, filled by decorators: a new op is one decorated function."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TypeVar

Rule = TypeVar("Rule")


def adder(table: MutableMapping[str, Rule], what: str = "") -> Callable[..., Callable[[Rule], Rule]]:
    """What puts rules into a table: called with names, it gives the decorator for a rule of those names.

    Two rules under one name are a ``ValueError``, except where both were written in ``__main__`` under one
    name of their own: in a notebook a cell that is run again replaces what it added.

    Args:
        table: Takes the rules.
        what: What the error puts before a name, such as ``"ONNX op "``.
    """

    def into(*names: str) -> Callable[[Rule], Rule]:
        def add(rule: Rule) -> Rule:
            for name in names:
                if name in table and not _written_again(table[name], rule):
                    raise ValueError(f"two rules for {what}{name}")
                table[name] = rule
            return rule

        return add

    return into


def _written_again(old: object, new: object) -> bool:
    known, given = (
        (getattr(rule, "__module__", None), getattr(rule, "__qualname__", None)) for rule in (old, new)
    )
    return known == given and known[0] == "__main__"
