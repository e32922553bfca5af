"""Trying a pruned model with other numbers in its modules, to see which of them its forward reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import nn

from penjing.prune.apply import set_attributes
from penjing.prune.compare import relative_error, run
from penjing.prune.plan import AttributeEdit

Edits = tuple[AttributeEdit, ...]


class Trials:
    """Runs of one model, each compared with what it gave before anything was tried.

    Args:
        model: A pruned model that works.
        example_inputs: What it is run on.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model, self._inputs = model, example_inputs

    def unread(self, kinds: Sequence[Edits]) -> list[Edits]:
        """Those of the kinds of numbers that the forward does not read: it gives the same without them.

        Nearly all are only noted, so they are taken away together, and by halves only where one is read.
        """
        if not kinds or self._is_same_without([edit for kind in kinds for edit in kind]):
            return list(kinds)
        if len(kinds) == 1:
            return []
        middle = len(kinds) // 2
        return [*self.unread(kinds[:middle]), *self.unread(kinds[middle:])]

    def is_same_with(self, edits: Edits) -> bool:
        """Whether the model gives the same with these edits, which stay."""
        expected = self._expected
        set_attributes(self.model, edits)
        return self._gives(expected)

    def _is_same_without(self, edits: Sequence[AttributeEdit]) -> bool:
        expected, holders = self._expected, dict(self.model.named_modules())
        values = [getattr(holders[edit.module], edit.name) for edit in edits]
        for edit in edits:
            delattr(holders[edit.module], edit.name)
        try:
            return self._gives(expected)
        finally:
            for edit, value in zip(edits, values, strict=True):
                setattr(holders[edit.module], edit.name, value)

    @cached_property
    def _expected(self) -> Any:
        return run(self.model, self._inputs)

    def _gives(self, expected: Any) -> bool:
        try:
            return relative_error(run(self.model, self._inputs), expected) == 0
        except Exception:  # the user's forward may raise anything
            return False
