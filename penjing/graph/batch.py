"""What a free batch counts as in the axis equations, where every size is a number."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._sympy.functions import FloorDiv

BATCH_PRIME = 1009
"""Stands for a symbolic dimension: a prime that no network dimension holds."""


def batch_standin(graphs: Iterable[fx.Graph]) -> int:
    """A size for every symbolic dimension: the prime, times what the networks divide their batch by.

    Frames folded into the batch and unfolded again, ``x.view(batch // 8, 8, …)``, ask for whole eights.
    """
    standin = BATCH_PRIME
    divisions = set[Any]().union(*map(_divisions, graphs))
    for division in sorted(divisions, key=lambda division: (division.count_ops(), str(division))):
        whole, by = (_number(part, standin) for part in division.args)
        standin *= by // math.gcd(whole, by) if by else 1
    return standin


def batch_unit(graph: fx.Graph) -> int:
    """What every batch is a multiple of: 1, or what the network divides it by."""
    return batch_standin([graph]) // BATCH_PRIME


def is_batched(node: fx.Node) -> bool:
    """Whether a value has the network's free batch, and nothing folded into it, as its first dimension."""
    inputs = (first for given in node.graph.find_nodes(op="placeholder") for first in _sizes(given)[:1])
    batch = next((size.node.expr for size in inputs if is_symbolic(size)), None)
    return any(is_symbolic(size) and size.node.expr == batch for size in _sizes(node)[:1])


def _divisions(graph: fx.Graph) -> set[Any]:
    """What is divided of the batch; other free sizes, as of a height, are of no account here."""
    given = [_sizes(node) for node in graph.find_nodes(op="placeholder")]
    others = _symbols(n for sizes in given for n in sizes[1:]) - _symbols(
        n for sizes in given for n in sizes[:1]
    )
    made = (size for node in graph.nodes for size in _sizes(node) if is_symbolic(size))
    found = {division for size in made for division in size.node.expr.atoms(FloorDiv)}
    return {division for division in found if not division.free_symbols & others}


def _symbols(sizes: Iterable[Any]) -> set[Any]:
    return {symbol for size in sizes if is_symbolic(size) for symbol in size.node.expr.free_symbols}


def _sizes(node: fx.Node) -> list[Any]:
    """Sizes of a node's tensors, one after the other."""
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else (value,)
    return [size for tensor in tensors if isinstance(tensor, Tensor) for size in tensor.shape]


def is_symbolic(size: Any) -> bool:
    """Whether a size is really free: a SymInt that a guard has fixed is not."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def concrete(size: Any, standin: int) -> int:
    """A size as a number; symbols take the value of the stand-in."""
    return _number(size.node.expr, standin) if is_symbolic(size) else int(size)


@functools.lru_cache(maxsize=4096)
def _number(expression: Any, standin: int) -> int:
    return int(expression.subs(dict.fromkeys(expression.free_symbols, standin)))


def per_sample(number: int, standin: int) -> int:
    """A count over the whole batch as one of a single sample; squared where samples meet each other."""
    while number and number % BATCH_PRIME == 0:
        number //= standin
    return number


def at_batch(size: int, standin: int, batch: int) -> int:
    """A size with the batch put in where it is free."""
    return size if size % BATCH_PRIME else max(size * batch // standin, 1)
