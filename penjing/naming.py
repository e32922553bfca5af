"""Names for the tensors of nested inputs, and back: the tensors of a call under a file's names for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a list, tuple or mapping holds at its ends, with the path to it: ``left_0`` of
    ``{"left": [x, …]}``; "" for what is none of these."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}_{key}" if path else str(key))
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}_{index}" if path else str(index))
    else:
        yield path, value


def tensor_leaves(value: Any) -> list[tuple[str, Any]]:
    """The leaves that are tensors or arrays."""
    return [(path, leaf) for path, leaf in leaves(value) if isinstance(leaf, (Tensor, np.ndarray))]


def given_leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """What any container that torch knows holds at its ends, with the keys to it.

    Classes that were registered without keys, as diffusers' outputs are, go by their own where they are
    mappings, else by the order of what they hold.
    """
    try:
        found = pytree.tree_flatten_with_path(tree)[0]
    except ValueError:
        parts = pytree.tree_leaves(tree, is_leaf=lambda part: part is not tree)
        is_keyed = isinstance(tree, Mapping) and len(tree) == len(parts)
        keys = zip(tree if is_keyed else range(len(parts)), parts, strict=True)
        return [((str(key), *path), leaf) for key, part in keys for path, leaf in given_leaves(part)]
    return [(tuple(map(_text, path)), leaf) for path, leaf in found]


def _text(key: Any) -> str:
    """A key of a dict, a field or an index."""
    return str(getattr(key, "key", getattr(key, "name", None) or getattr(key, "idx", "")))


def lone(inputs: Any) -> Any:
    """The mapping that is a call's one argument, bare or in a tuple; other inputs as they are."""
    if isinstance(inputs, (tuple, list)) and len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return inputs[0]
    return inputs


def by_name(inputs: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """The inputs of a call under a file's names for them; None where they do not fit.

    A mapping goes by its keys, and may have more of them. Else arguments go by their order, and what a
    nested mapping holds by its keys, which end the names (``x_left`` for ``{"left": …}``).
    """
    inputs = lone(inputs)
    if isinstance(inputs, Mapping):
        found = dict(leaves(inputs)) | dict(inputs)
        if found.keys() >= set(names):
            return {name: found[name] for name in names}
        return _by_ending(tensor_leaves(inputs), names)
    parts = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    if len(parts) == len(names) and not any(isinstance(part, Mapping) for part in parts):
        return dict(zip(names, parts, strict=True))
    out: dict[str, Any] = {}
    for part in parts:
        held = tensor_leaves(part)
        own = names[len(out) : len(out) + len(held)]
        if len(own) != len(held):
            return None
        out |= _by_ending(held, own) or dict(zip(own, (leaf for _, leaf in held), strict=True))
    return out if len(out) == len(names) else None


def _by_ending(held: Sequence[tuple[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    """Tensors under the names that end in their paths; None where some have no such name."""
    paths = [_ending(name, held) for name in names]
    by_path = dict(held)
    if len(held) != len(names) or set(paths) != by_path.keys() - {""} or len(by_path) != len(held):
        return None
    return {name: by_path[path] for name, path in zip(names, paths, strict=True)}


def _ending(name: str, held: Sequence[tuple[str, Any]]) -> str:
    """The longest of the paths that the name ends in."""
    return max((path for path, _ in held if f"_{name}".endswith(f"_{path}")), key=len, default="")
