"""Two models that hold the same tensors, run side by side and computed once.

Where a model calls the very ops that a traced graph calls, in that order and on the same tensors, it gives
the same numbers and need not compute them. This says more than a comparison of outputs, which can hide a
difference in noise, and takes little more time than one run. It keeps no value longer than the model or the
graph does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import enable_reentrant_dispatch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from penjing.graph.source import source_of
from penjing.graph.tree import held_tensors

_LAYOUTS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_ROUNDING = 1e-6
"""Numbers this near to each other are the same one, computed in another order."""


def departure(run: Callable[[], Any], graph: fx.GraphModule, inputs: Sequence[Any]) -> str | None:
    """Where a model leaves the calls of a graph; None where it makes exactly these and returns what they
    give.

    Text says that the model computes with another number there, or makes other heads, so something else,
    however near to it on these inputs: attention that is close to uniform hides both. "" says nothing: the
    model may compute the same in another way, or raise.

    Args:
        run: Runs the model, without gradients, and does nothing besides: every call counts.
        graph: The traced graph, holding the model's own tensors.
        inputs: The flat inputs that ``run`` gives the model.
    """
    mode = _Lockstep(_Steps(graph, inputs))
    try:
        with _casts_uncached(), mode:
            found = run()
        if not mode.departed and mode.is_over(found):
            return None
    except Exception:  # a departure, or what came of it: running the model by itself will tell
        pass
    return mode.other_number


@contextmanager
def _casts_uncached() -> Iterator[None]:
    """Autocast without its cache, unless the model asks for it.

    A cast that goes into the cache holds a lock while the modes here are called. The graph's op that they run
    then casts, too, and would wait for that lock for ever.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@dataclass(frozen=True)
class _Call:
    """One op as the dispatcher saw it."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is ever compiled; guarding against it would take longer than the mode itself."""
        return False


class _Recorder(_Mode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: deque[_Call] = deque()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.calls.append(_Call(func, args, kwargs, result))
        return result


class _Steps:
    """Interprets a graph up to its next call, again and again."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.recorder = _Recorder()
        self.node: fx.Node | None = None  # whose calls come now
        self.attends = any("softmax" in str(node.target) for node in module.graph.nodes)
        self.outputs: Any = None
        nodes = module.graph.nodes
        tensors = {held.name: held.tensor for held in held_tensors(module)}
        reads = {node: tensors[str(node.target)] for node in nodes if node.op == "get_attr"}
        self._nodes = iter([node for node in nodes if node not in reads])
        self._inputs = iter(inputs)
        self._values: dict[fx.Node, Any] = dict(reads)
        self._readers = {node: len(node.users) for node in nodes}

    def next_call(self) -> _Call | None:
        """The next call, computed just now; None at the end, when ``outputs`` is set."""
        calls = self.recorder.calls
        while not calls:
            node = next(self._nodes, None)
            if node is None:
                return None
            self._step(node)
        return calls.popleft()

    def _step(self, node: fx.Node) -> None:
        self.node = node
        if node.op == "placeholder":
            self._values[node] = next(self._inputs)
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "output":
            self.outputs = args
            return
        assert callable(node.target)
        with self.recorder:
            self._values[node] = node.target(*args, **kwargs)
        for source in node.all_input_nodes:
            self._readers[source] -= 1
            if not self._readers[source]:
                del self._values[source]


class _Departure(Exception):
    """The model does not do what the graph does."""


class _Lockstep(_Mode):  # type: ignore[no-untyped-call]
    def __init__(self, steps: _Steps) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps = steps
        self.departed = False  # remembered, because the model may swallow the exception
        self.other_number = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        stop = self.departed or torch.is_autocast_cache_enabled()  # by the model itself
        call = None if stop else self._next_call()
        if call is None or call.op is not func or not same(call.args, args) or not same(call.kwargs, kwargs):
            if call is not None and call.op is func:
                self.other_number = self._told(call, args, kwargs)
            self.departed = True
            raise _Departure
        # autograd marks each view as one, which can be done once only; making it again costs nothing
        return func(*args, **kwargs) if func.is_view else call.result

    def _told(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What differs where the same op takes the same tensors; "" where more does."""
        theirs, ours = ({**dict(enumerate(a)), **k} for a, k in ((call.args, call.kwargs), (args, kwargs)))
        other = [key for key in theirs if key not in ours or not same(theirs[key], ours[key])]
        if theirs.keys() != ours.keys() or len(other) != 1 or self.steps.node is None:
            return ""
        its, here = theirs[other[0]], ours[other[0]]
        if type(its) is type(here) is float and not math.isclose(its, here, rel_tol=_ROUNDING):
            return self._text(f"computes with {here:g}", f"{its:g}")
        if call.op in _LAYOUTS and self.steps.attends:
            before, made = call.result.shape, torch.empty(call.args[0].shape, device="meta").view(here).shape
            if made != before:
                return self._text(f"lays out {[*made]}", f"{[*before]}")
        return ""

    def _text(self, here: str, its: str) -> str:
        place = source_of(self.steps.node) if self.steps.node is not None else ""
        return f"it {here}{place and f' at {place}'} where the original has {its}"

    def _next_call(self) -> _Call | None:
        if self.steps.recorder.calls:
            return self.steps.next_call()
        with enable_reentrant_dispatch():  # so that the graph's ops are taken apart as the model's are
            return self.steps.next_call()

    def is_over(self, found: Any) -> bool:
        """Whether the graph has no call left and returns what was found."""
        return self.steps.next_call() is None and same(_tensors(self.steps.outputs), _tensors(found))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are the same: tensors by the memory they show, all else by type and value."""
    if a is b:
        return True
    if isinstance(a, list | tuple):
        alike = isinstance(b, list | tuple) and len(a) == len(b)
        return alike and all(x is y or same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and _same_memory(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return bool(
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.storage_offset() == b.storage_offset()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.is_conj() == b.is_conj()
        and a.is_neg() == b.is_neg()
    )
