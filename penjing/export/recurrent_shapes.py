"""Recurrent layers whose length is left free: torch's own rules for their shapes walk through the time steps,
which makes the length a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table, meta_table
from torch._subclasses.fake_impls import op_implementations_dict as _fake_rules

_aten = torch.ops.aten
_ONE_OP = (_aten.lstm.input, _aten.gru.input)
_KEYS = (
    torch._C.DispatchKey.CompositeImplicitAutograd,
    torch._C.DispatchKey.Autograd,
    torch._C.DispatchKey.Meta,
)


@contextmanager
def traced_lengths() -> Iterator[None]:
    """While a forward is traced, LSTM, GRU and RNN of sizes that are not all numbers stay one op, whose
    outputs are shapes alone."""
    with _kernels(_SHAPES):
        yield


@contextmanager
def translated_lengths() -> Iterator[None]:
    """While a traced graph is translated to ONNX, LSTM and GRU, which are one op there, have the same shapes
    again; RNN is unrolled, to the length of the example."""
    tables: tuple[Any, ...] = (meta_table, _fake_rules)
    before = [(table, {op: table[op] for op in _ONE_OP if op in table}) for table in tables]
    with _kernels(_ONE_OP):
        try:
            for op in _ONE_OP:
                meta_table[op] = partial(_kernel, op)  # known there, it is not walked through
                _fake_rules[op] = _fake_rule
            yield
        finally:
            for table, known in before:
                for op in _ONE_OP:
                    table.pop(op, None)
                table.update(known)


@contextmanager
def _kernels(ops: Iterable[Any]) -> Iterator[None]:
    """Inside, these ops give shapes alone, whichever way torch comes to them."""
    before = {op: dict(op.py_kernels) for op in ops}
    try:
        for op in ops:
            op.py_kernels.update(dict.fromkeys(_KEYS, partial(_kernel, op)))
            op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in before.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def _fake_rule(mode: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return _kernel(op, *args, **kwargs)


def _kernel(op: Any, x: Tensor, state: Any, *args: Any) -> Any:
    if not any(isinstance(size, torch.SymInt) for size in x.shape):
        return decomposition_table[op](x, state, *args)
    bidirectional = args[-2]
    return _SHAPES[op](x, state, 2 if bidirectional else 1)


def _lstm(x: Tensor, state: Any, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cell = state
    return _out(x, hidden, directions), torch.empty_like(hidden), torch.empty_like(cell)


def _gru(x: Tensor, hidden: Tensor, directions: int) -> tuple[Tensor, Tensor]:
    return _out(x, hidden, directions), torch.empty_like(hidden)


def _out(x: Tensor, hidden: Tensor, directions: int) -> Tensor:
    return x.new_empty((*x.shape[:2], hidden.shape[-1] * directions))


_SHAPES: Mapping[Any, Callable[..., Any]] = {
    _aten.lstm.input: _lstm,
    _aten.gru.input: _gru,
    _aten.rnn_tanh.input: _gru,
    _aten.rnn_relu.input: _gru,
}
