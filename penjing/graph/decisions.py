"""Decisions a forward takes in Python on the values of tensors: ``if mask.all():``, ``int(sizes.max())``.

torch.export follows none of them. Many go by constants only (torch's own ``TransformerEncoder`` compares its
mask with a causal one) and come out the same whatever the inputs are; these can be given their answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from penjing.errors import TraceError
from penjing.graph.remembered import forgotten, own_copies
from penjing.graph.source import place

_OTHERS = 4  # passes over other inputs, before a decision counts as independent of them
_QUESTIONS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist")
_SCALARS = ("full", "arange")  # torch reads tensors that are given to these for numbers, unseen


@dataclass(frozen=True)
class Decision:
    """One value that went from a tensor to Python.

    Attributes:
        question: How it was asked for: ``"__bool__"``, ``"item"``, ….
        answer: The value.
        source: ``"folder/file.py:line"`` of the code that asked.
    """

    question: str
    answer: Any
    source: str


class _Record(TorchFunctionMode):
    """Remembers every decision, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[Decision] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        source = place(sys._getframe(1)) if name in (*_QUESTIONS, *_SCALARS) else ""
        if name in _SCALARS:
            args, kwargs = pytree.tree_map_only(Tensor, partial(self._number, source=source), (args, kwargs))
        result = func(*args, **(kwargs or {}))
        if name in _QUESTIONS:
            self.decisions.append(Decision(name, result, source))
        return result

    def _number(self, value: Tensor, source: str) -> Any:
        self.decisions.append(Decision("item", value.item(), source))
        return self.decisions[-1].answer


class _Replay(TorchFunctionMode):
    """Answers the decisions of a forward as they were answered before, each place in its order.

    The tracer knows some constants by itself and does not ask for them.
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        super().__init__()
        self._left: dict[tuple[str, str], list[Any]] = {}
        self._kinds: dict[tuple[str, str], set[str]] = {}
        for decision in reversed(decisions):
            key = (decision.question, decision.source)
            self._left.setdefault(key, []).append(decision.answer)
            self._kinds.setdefault(key, set()).add(repr(decision.answer))
        self._asked: set[tuple[str, str]] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _QUESTIONS:
            return self._answer((name, place(sys._getframe(1))))
        if name in _SCALARS:
            key = ("item", place(sys._getframe(1)))
            args, kwargs = pytree.tree_map_only(Tensor, lambda _: self._answer(key), (args, kwargs))
        return func(*args, **(kwargs or {}))

    def _answer(self, key: tuple[str, str]) -> Any:
        if not self._left.get(key):
            raise _otherwise(key[1])
        self._asked.add(key)
        return self._left[key].pop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for key in self._asked:
            if error is None and self._left[key] and len(self._kinds[key]) > 1:
                raise _otherwise(key[1])  # which of them were asked for is not known


def _otherwise(source: str) -> TraceError:
    return TraceError(
        f"the forward takes other decisions while it is traced, at {source}",
        remedy="Make it independent of whether it is being traced",
    )


def replayed(decisions: Sequence[Decision]) -> AbstractContextManager[object]:
    """One forward in which decisions are answered as they were in an earlier pass, in order.

    Raises:
        TraceError: in the forward, if it asks otherwise than then.
    """
    return _Replay(decisions) if decisions else nullcontext()


def decide(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Decision, ...]:
    """The decisions of a forward, if they are the same for other inputs of the same shapes and kinds.

    Args:
        model: In the mode to be traced.
        args, kwargs: Inputs it takes.

    Raises:
        TraceError: naming the line of a decision that goes by the inputs.
    """
    given = _recorded(model, args, kwargs)
    if not given:
        return ()
    for seed in range(_OTHERS):
        other_args, other_kwargs = pytree.tree_map(partial(_other, seed=seed), (args, kwargs))
        try:
            others = _recorded(model, other_args, other_kwargs)
        except Exception as error:  # other values are refused: nothing tells what the decisions go by
            raise _by_inputs(given[0]) from error
        for one, other in zip(given, others, strict=False):
            if repr(one) != repr(other):  # NaN is alike too
                raise _by_inputs(one)
        if len(given) != len(others):
            raise _by_inputs(given[-1])
    return given


def _recorded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Decision, ...]:
    with torch.no_grad(), forgotten(model), _Record() as record:
        model(*own_copies(args), **own_copies(kwargs))
    return tuple(record.decisions)


def _by_inputs(decision: Decision) -> TraceError:
    return TraceError(
        f"the forward decides by the values of its inputs at {decision.source}",
        remedy="Write the choice with torch.where, or prune a submodule that makes none",
    )


def _other(value: Any, seed: int) -> Any:
    """Another tensor of the same shape, kind and range: noise, or, for every second seed, the given values
    turned about and of the other sign.
    """
    if not isinstance(value, Tensor) or not value.numel():
        return value
    given, draw = value.detach().cpu(), torch.Generator().manual_seed(seed)
    if given.dtype == torch.bool:
        other = torch.rand(given.shape, generator=draw) < 0.5
    elif given.is_floating_point() or given.is_complex():
        noise = torch.randn(given.shape, generator=draw, dtype=given.dtype)
        other = -given.flip(tuple(range(given.ndim))) if seed % 2 else noise * (1 + given.abs().max())
    else:
        low, high = min(0, int(given.min())), int(given.max())
        other = torch.randint(low, max(high, low + 1) + 1, given.shape, generator=draw).to(given.dtype)
    return other.to(value.device)
