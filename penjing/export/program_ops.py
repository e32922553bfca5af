"""What a stored program may call: a closed table. A crafted file cannot reach any other function.

Tensor operators are looked up in the namespaces below and admitted by their *schema*: an operator that takes
a file name, a storage, a stream or any object that is not plain data is refused (``aten.from_file`` maps a
file, ``aten.save`` writes one). Besides them only the arithmetic that symbolic sizes need is callable.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from penjing.errors import PenjingError

#: Operator namespace → the module that registers it (None: part of torch itself).
NAMESPACES: dict[str, str | None] = {"aten": None, "torchvision": "torchvision"}

#: Arithmetic on sizes, and taking one of several outputs.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{function.__name__}": function
        for function in (
            operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
            operator.mod, operator.pow, operator.neg, operator.eq, operator.ne, operator.lt, operator.le,
            operator.gt, operator.ge, operator.and_, operator.or_, operator.not_,
        )
    },
    **{f"math.{function.__name__}": function for function in (math.ceil, math.floor, math.trunc)},
    **{
        f"torch.{function.__name__}": function
        for function in (
            torch.sym_float, torch.sym_int, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_ite,
            torch.sym_sum,
        )
    },
}  # fmt: skip

_NAMES: dict[Callable[..., Any], str] = {function: name for name, function in FUNCTIONS.items()}

# Types an operator's arguments may be built from, as the schema prints them.
_PLAIN = re.compile(
    r"(Tensor|int|bool|float|number|complex|str|Device|Generator|Layout|ScalarType|MemoryFormat|SymInt|AnyEnumType"
    r"|List|Optional|\[|\]|,|\s)+"
)
# What a string argument may mean; anything else (a file name above all) is refused.
_STRING_ARGUMENTS = frozenset(
    (
        "norm", "reduce", "rounding_mode", "mode", "driver", "interpolation", "UPLO", "approximate",
        "assert_msg", "ord", "side", "padding", "p", "pad_mode", "equation", "indexing", "padding_side",
        "padding_mode",
    )
)  # fmt: skip


def target_name(target: object) -> str | None:
    """The name a callable is stored under, or None when a program may not call it."""
    if isinstance(target, OpOverload):
        return str(target) if _admitted(target) else None
    return _NAMES.get(target) if callable(target) else None


def target_named(name: str, error: type[PenjingError]) -> Callable[..., Any]:
    """The callable stored under ``name``.

    Raises:
        PenjingError: of class ``error`` when the name is none that a program may call.
    """
    found = FUNCTIONS.get(name) or _operator(name)
    if found is None:
        raise error(
            f"the program calls {name!r}, which is not a tensor operator that a stored program may call",
            layer=name,
            remedy="Trust no such file; export the model again with this version of penjing",
        )
    return found


def _operator(name: str) -> OpOverload | None:
    parts = name.split(".")
    if len(parts) != 3 or not all(part.isidentifier() for part in parts) or parts[0] not in NAMESPACES:
        return None
    module = NAMESPACES[parts[0]]
    if module is not None:
        try:
            importlib.import_module(module)
        except ImportError:
            return None
    try:
        found = getattr(getattr(getattr(torch.ops, parts[0]), parts[1]), parts[2])
    except AttributeError:
        return None
    return found if isinstance(found, OpOverload) and _admitted(found) else None


def _admitted(op: OpOverload) -> bool:
    if op.namespace not in NAMESPACES:
        return False
    for argument in op._schema.arguments:
        kind = str(argument.type)
        if not _PLAIN.fullmatch(kind) or ("str" in kind and argument.name not in _STRING_ARGUMENTS):
            return False
    return True
