"""Why a batch is fixed, and the line that fixes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from penjing.graph.batch import is_symbolic
from penjing.graph.source import is_users, place, short_place

FIXED = "the batch size is fixed"
"""How a note on it begins."""

PLAIN_NUMBER = "the model's forward computes with it as a plain number"
"""Why, where torch only says that a constraint is violated."""


def why_fixed(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """`PLAIN_NUMBER`; where the batch was read off a square matrix, that it may be none."""
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    leaves = ((name, leaf) for name, value in given.items() for leaf in pytree.tree_leaves(value))
    name, first = next(((name, leaf) for name, leaf in leaves if isinstance(leaf, Tensor)), ("", None))
    if first is None or first.ndim != 2 or first.shape[0] != first.shape[1]:
        return PLAIN_NUMBER
    size = "×".join(map(str, first.shape))
    return (
        f"{PLAIN_NUMBER}; it is the first dimension of the first input, and {name!r} is {size}: if that is "
        "no batch, as of an adjacency matrix, let an input of samples come first"
    )


class BatchWatch(TorchFunctionMode):
    """Sees which line of the user's fixes a batch size that was free.

    Attributes:
        at: ``" at folder/file.py:line"``, or "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.at = ""
        self._size: Any = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._size is None:
            first = (leaf.shape[0] for leaf in args if isinstance(leaf, Tensor) and leaf.dim())
            self._size = next((size for size in first if is_symbolic(size)), None)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            if self._size is not None and not self.at and not is_symbolic(self._size):
                where = _fixed_at(self._size) or place(sys._getframe(1))
                self.at = f" at {where}" if where else ""


def _fixed_at(size: torch.SymInt) -> str:
    """The line that made a free size a number, where torch remembers one of the user's: ``int(size)`` is no
    call of torch.
    """
    spots = getattr(size.node.shape_env, "replacements_slocs", {})
    frame = getattr(spots.get(size.node._expr), "framework_loc", None)
    if frame is None or not is_users(frame.filename):
        return ""
    return short_place(frame.filename, frame.lineno)
