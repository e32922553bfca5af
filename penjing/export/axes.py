"""Sizes of inputs that callers of a file choose beside the batch: a sequence length, a height, a width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from penjing.errors import ExportError
from penjing.export.inputs import Feeds

DynamicAxes = Mapping[str, Mapping[int, str]]
"""Input name (or a pattern such as ``*``) → dimension → what its size is called."""

SIZES_OF_A_FILE = "the sizes of an ONNX file are as they were written"

_REMEDY = "Write input:dimension=name, such as input_ids:1=sequence or image:2=height"
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class FreeSize:
    """One size that a file leaves free, of all dimensions that have it.

    Attributes:
        name: What the file calls it; where it has no name, which dimensions.
        places: (input, dimension), as the reference takes that input.
    """

    name: str
    places: tuple[tuple[str, int], ...]

    def changed(self, feeds: Feeds) -> Iterator[tuple[int, Feeds]]:
        """The feeds at other sizes: twice the example's, half of it, then as many steps more after the first
        (65 → 129, for networks that take 8n + 1). What is added repeats what is there."""
        given = feeds[self.places[0][0]].shape[self.places[0][1]]
        for size in (2 * given, given // 2, 2 * given - 1):
            if size > 1 and size != given:
                out = dict(feeds)
                for name, dim in self.places:
                    out[name] = np.take(out[name], np.arange(size) % out[name].shape[dim], axis=dim)
                yield size, out


def parse_axes(texts: Iterable[str]) -> dict[str, dict[int, str]]:
    """Dynamic axes as the command line takes them: ``input_ids:1=sequence``.

    Raises:
        ExportError: for a text of another form.
    """
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        match = re.fullmatch(r"(?P<input>.+):(?P<dim>\d+)=(?P<name>.*)", text.strip())
        if match is None:
            raise ExportError(f"{text!r} names no size of an input", layer="dynamic_axes", remedy=_REMEDY)
        found.setdefault(match["input"], {})[int(match["dim"])] = match["name"]
    return found


def axes_by_input(
    asked: DynamicAxes | None, shapes: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, str]]:
    """The dimensions of each input to leave free, by name; only inputs that have some.

    Args:
        asked: What the user asks for.
        shapes: Example shapes by input name.

    Raises:
        ExportError: for a pattern without an input, a dimension that no such input has, the batch, an example
            of size 1 (which tracing takes for a constant), a name that is none, or one for two sizes.
    """
    found: dict[str, dict[int, str]] = {}
    sizes: dict[str, int] = {}
    for pattern, axes in (asked or {}).items():
        inputs = [name for name in shapes if fnmatchcase(name, pattern)]
        if not inputs:
            raise ExportError(
                f"no input is called {pattern!r}", layer="dynamic_axes", remedy=f"Inputs: {', '.join(shapes)}"
            )
        for dim, name in axes.items():
            having = [key for key in inputs if dim < len(shapes[key])] if dim >= 0 else []
            _check(pattern, dim, name, [shapes[key] for key in having])
            for key in having:
                found.setdefault(key, {})[dim] = name
                size = shapes[key][dim]
                if sizes.setdefault(name, size) != size:
                    raise ExportError(
                        f"{name} is {sizes[name]} and {size} (dimension {dim} of {key}) in the example",
                        layer="dynamic_axes",
                        remedy="One name is one size: give two names",
                    )
    return found


def _check(pattern: str, dim: int, name: str, shapes: Sequence[Sequence[int]]) -> None:
    problem, remedy = "", _REMEDY
    if not shapes:
        problem = f"input {pattern!r} has no dimension {dim}"
    elif dim == 0:
        problem, remedy = "dimension 0 is the batch, which is free by itself", "Name other dimensions"
    elif name == "batch" or not _NAME.fullmatch(name):
        problem = f"{name!r} cannot be the name of a size"
    elif any(shape[dim] < 2 for shape in shapes):
        problem = (
            f"the example has size 1 in dimension {dim} of {pattern!r}, which tracing takes for constant"
        )
        remedy = "Give example inputs of another size there"
    if problem:
        raise ExportError(problem, layer="dynamic_axes", remedy=remedy)


def free_sizes(
    shapes: Mapping[str, Sequence[int | None]], names: Mapping[str, Sequence[str | None]], feeds: Feeds
) -> list[FreeSize]:
    """What a file leaves free beside the batch.

    Args:
        shapes: Shape by input, None where it is free, in the order of the reference's dimensions.
        names: Names of free dimensions, where the file has any; others belong together if the example has
            the same size there.
        feeds: Example inputs.
    """
    places: dict[str | int, list[tuple[str, int]]] = {}
    for key, shape in shapes.items():
        named = names.get(key) or [None] * len(shape)
        for dim, (size, name) in enumerate(zip(shape, named, strict=True)):
            if size is None and key in feeds and (name or dim):
                places.setdefault(name or feeds[key].shape[dim], []).append((key, dim))
    free = {name: found for name, found in places.items() if any(dim for _, dim in found)}
    return [
        FreeSize(name if isinstance(name, str) else _by_dimension(found), tuple(found))
        for name, found in free.items()
    ]


def _by_dimension(places: Sequence[tuple[str, int]]) -> str:
    return "dimension " + " and ".join(dict.fromkeys(str(dim) for _, dim in places))
