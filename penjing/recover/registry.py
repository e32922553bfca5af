"""Configs found by name: losses and regularizers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from penjing.config import Config
from penjing.table import adder

C = TypeVar("C", bound=Config)
_K = TypeVar("_K", bound=type[Config])


class Registry(Generic[C]):
    """Classes of one kind by name; calling it with a name gives the class decorator that adds one.

    Args:
        what: What an error calls the kind: ``"loss"``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._known: dict[str, type[C]] = {}

    def __call__(self, name: str) -> Callable[[_K], _K]:
        """Class decorator: make a class known under ``name``; a second of that name is a ``ValueError``."""
        return adder(self._known, f"{self._what} ")(name)  # type: ignore[return-value]  # kept by the caller

    def make(self, name: str, options: Mapping[str, Any] | None = None) -> C:
        """One of that name with these options.

        Raises:
            ValueError: unknown name (with the nearest known one) or options that it does not have.
        """
        if name not in self._known:
            near = difflib.get_close_matches(name, self._known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else f"; known: {', '.join(self.names())}"
            raise ValueError(f"unknown {self._what} {name!r}{hint}")
        return self._known[name].model_validate(dict(options or {}))

    def known(self) -> Mapping[str, type[C]]:
        """The classes by name."""
        return dict(self._known)

    def names(self) -> tuple[str, ...]:
        """All names, in alphabetical order."""
        return tuple(sorted(self._known))
