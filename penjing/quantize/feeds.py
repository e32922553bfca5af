"""Calibration data as the runtime wants it: named arrays in small batches, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from penjing.batches import check_batches, take_apart
from penjing.class_order import class_by_class, plain_labels
from penjing.errors import QuantizeError
from penjing.naming import by_name, leaves, lone

Feed = dict[str, NDArray[np.generic]]

_EVERY = 4
"""Of so many samples one may be held back."""

_KINDS = {ir.DataType.FLOAT: np.float32, ir.DataType.INT64: np.int64, ir.DataType.INT32: np.int32}


@dataclass(frozen=True)
class InputSpec:
    """One input of the graph: its name, dims (None where free), number type, and names of free dims."""

    name: str
    dims: tuple[int | None, ...]
    dtype: np.dtype[Any]
    free: tuple[str | None, ...] = ()


def input_specs(graph: ir.Graph) -> tuple[InputSpec, ...]:
    """What the graph takes."""
    specs = []
    for value in graph.inputs:
        shape = value.shape if value.shape is not None else ()
        dims = tuple(d if isinstance(d, int) else None for d in shape)
        if value.dtype is None or value.name is None:
            raise QuantizeError("an input has no name or type", remedy="Save the model with typed inputs")
        free = tuple(d.value if isinstance(d, ir.SymbolicDim) else None for d in shape)
        kind = np.dtype(_KINDS.get(value.dtype, value.dtype.numpy()))
        specs.append(InputSpec(value.name, dims, kind, free))
    return tuple(specs)


def rereadable(data: Iterable[Any], samples: int) -> Iterable[Any]:
    """Batches to be read more than once: of an iterator a list, cut to ``samples``; an array is one batch.

    Raises:
        DataError: if it gives no batches.
    """
    if _is_array(data):
        return [data]
    check_batches(data)
    if not isinstance(data, Iterator):
        return data
    kept, count = [], 0
    for batch in data:
        kept.append(batch)
        count += _count(batch)
        if count >= samples:
            break
    return kept


class Feeds:
    """Calibration samples, read from the user's batches as often as needed; see `rereadable`.

    Args:
        data: The batches.
        specs: What the graph takes.
        samples: Samples read, at most.
        held: How many of them, at most, are no part of this: every fourth one, which `spared` gives.

    Attributes:
        fixed: Batch size of the graph, where it is fixed.
        each: Inputs with an entry for each sample; the others (a graph's adjacency) belong to all of them.
    """

    def __init__(
        self, data: Iterable[Any], specs: tuple[InputSpec, ...], samples: int, held: int = 0
    ) -> None:
        self.specs = specs
        self.samples = samples
        self.fixed, self.each = _of_samples(specs)
        self._data = rereadable(data, samples)
        self._held, self._spared = held, False

    @property
    def most(self) -> int:
        """Samples that this gives where the data has as many as may be read."""
        held = min(self._held, self.samples // _EVERY)
        return held if self._spared else self.samples - held

    def spared(self) -> Feeds | None:
        """The samples held back; None if there are too few. Data that shuffles does not keep them apart."""
        found = copy(self)
        found._spared = True
        return found if next(found._parts(False), None) is not None else None

    def batches(
        self, size: int | None = None, limit: int | None = None, *, targets: bool = False
    ) -> Iterator[tuple[Feed, NDArray[np.generic] | None]]:
        """Feeds of at most ``size`` samples with their targets (None where the data has none).

        Args:
            size: Samples of a feed, at most.
            limit: Samples of all of them, at most.
            targets: Whether targets are wanted; they may be anything if not.

        Raises:
            QuantizeError: if there is no sample, or one of the wrong shape, or with NaN or infinity; for
                targets that are not an array with one entry per sample.
        """
        # A graph with a fixed batch takes a whole one, however few samples are asked for.
        left = max(min(self.samples, limit or self.samples), self.fixed or 0)
        given = 0
        for feed, target in self._parts(targets):
            count = min(self.count(feed), left - given)
            step = self.fixed or size or count
            for start in range(0, count, step):
                stop = min(start + step, count)
                if self.fixed and stop - start < self.fixed:
                    break  # a graph with a fixed batch cannot take the rest
                part = None if target is None else target[start:stop]
                yield self.taken(feed, slice(start, stop)), part
                given += stop - start
            if given >= left:
                break
        if not given:
            raise QuantizeError(
                "the calibration data holds no full batch" if self.fixed else "the calibration data is empty",
                remedy="Give at least one batch"
                + (f" of {self.fixed} samples, the batch size of the graph" if self.fixed else " of samples"),
            )

    def sorted_by_class(self) -> str:
        """A warning where the samples come class by class and the data goes on behind them; "" otherwise."""
        labels: list[int] = []
        for batch in self._data:
            _, target, _ = take_apart(batch, [spec.name for spec in self.specs])
            labels += (found := plain_labels(target))
            if not found:
                break
            if len(labels) > self.samples:
                return class_by_class(labels, self.samples)
        return ""

    def _parts(self, targets: bool) -> Iterator[tuple[Feed, NDArray[np.generic] | None]]:
        """Of each of the user's batches the samples that belong here; whole ones for a fixed batch size."""
        unit = self.fixed or 1
        left, seen = max(self.samples, unit), 0
        for index, batch in enumerate(self._data):
            feed, held = self._feed(batch, index)
            whole = self.count(feed)
            if not whole:
                raise QuantizeError(
                    f"calibration batch {index} has no samples", remedy="Remove empty batches from the data"
                )
            target = _target(held, whole, index) if targets else None
            count = min(whole, left - seen)
            if not count:
                break
            count -= count % unit
            number_N = (seen + np.arange(count)) // unit
            kept_N = (number_N % _EVERY == _EVERY - 1) & (number_N // _EVERY * unit < self._held)
            rows = np.flatnonzero(kept_N == self._spared)
            seen += count
            if len(rows):
                some = slice(count) if len(rows) == count else rows  # no copy where all are taken
                yield self.taken(feed, some), None if target is None else target[some]
            if seen >= left:
                break

    def count(self, feed: Feed) -> int:
        """Samples of a feed."""
        return next((len(array) for name, array in feed.items() if name in self.each), 1)

    def taken(self, feed: Mapping[str, Any], some: Any) -> dict[str, Any]:
        """Some samples of a feed, by an index of arrays (or tensors)."""
        return {name: array[some] if name in self.each else array for name, array in feed.items()}

    def _feed(self, batch: Any, index: int) -> tuple[Feed, Any]:
        inputs, target, _ = take_apart(batch, [spec.name for spec in self.specs])
        arrays = _by_name(inputs, self.specs)
        for spec in self.specs:
            arrays[spec.name] = _check(arrays[spec.name], spec, index, each=spec.name in self.each)
        counts = {len(array) for name, array in arrays.items() if name in self.each}
        if len(counts) > 1:
            raise QuantizeError(
                f"calibration batch {index} has inputs of {sorted(counts)} samples",
                remedy="Give every input the same batch size",
            )
        return arrays, target


def _of_samples(specs: Sequence[InputSpec]) -> tuple[int | None, frozenset[str]]:
    """The fixed batch size, or None, and the inputs that have it: their first dim is free, or the first
    one's."""
    free = frozenset(spec.name for spec in specs if spec.dims and spec.dims[0] is None)
    if free:
        return None, free
    fixed = next((spec.dims[0] for spec in specs if spec.dims), None)
    return fixed, frozenset(spec.name for spec in specs if spec.dims and spec.dims[0] == fixed)


def _by_name(inputs: Any, specs: tuple[InputSpec, ...]) -> dict[str, NDArray[np.generic]]:
    names = [spec.name for spec in specs]
    named = by_name(inputs, names)
    if named is None and isinstance(lone(inputs), Mapping):
        given = [path for path, _ in leaves(lone(inputs))]
        missing = next(name for name in names if name not in given)
        raise QuantizeError(
            f"the calibration data lacks the input {missing!r} (it has {', '.join(given)})",
            remedy="Give one entry for each input of the graph",
        )
    if named is None:
        raise QuantizeError(
            f"the calibration data has {len(list(leaves(inputs)))} inputs where the graph has {len(specs)}",
            remedy=f"Give {', '.join(names)}",
        )
    return {name: _to_numpy(value) for name, value in named.items()}


def _check(array: NDArray[np.generic], spec: InputSpec, index: int, *, each: bool) -> NDArray[np.generic]:
    fits = array.ndim == len(spec.dims) and all(
        want is None or want == have
        for want, have in list(zip(spec.dims, array.shape, strict=False))[1 if each else 0 :]
    )
    if not fits:
        sizes = (None if i == 0 and each else dim for i, dim in enumerate(spec.dims))
        want = "×".join("N" if size is None else str(size) for size in sizes) or "a number"
        raise QuantizeError(
            f"batch {index} has shape {'×'.join(map(str, array.shape))} where the graph takes {want}",
            layer=spec.name,
            remedy="Give calibration data preprocessed as for the network's own inputs",
        )
    given = array
    with np.errstate(invalid="ignore"):  # NaN as an integer, which is told below
        array = given.astype(spec.dtype, copy=False)
    if array.dtype.kind in "iu" and not np.array_equal(array, given):
        raise QuantizeError(
            f"batch {index} holds {given.dtype} numbers ({given.min():.3g}…{given.max():.3g}) that its "
            f"{spec.dtype} cannot hold",
            layer=spec.name,
            remedy="Give calibration data as the network takes it: images as raw pixels, say",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise QuantizeError(
            f"calibration batch {index} holds NaN or infinity",
            layer=spec.name,
            remedy="Remove the sample or correct the preprocessing",
        )
    return np.ascontiguousarray(array)


def _target(target: Any, samples: int, index: int) -> NDArray[np.generic] | None:
    if target is None:
        return None
    array = np.atleast_1d(_read(target))
    if array.dtype == object or len(array) != samples:
        raise QuantizeError(
            f"the target of batch {index} ({type(target).__name__}) is no array of {samples} entries, "
            "which a metric is measured on",
            remedy="Give one target per sample; without targets, agreement with fp32 is measured",
        )
    return array


def _read(target: Any) -> NDArray[Any]:
    """Targets as an array; an empty one of objects where they are none."""
    try:
        return _to_numpy(target)
    except (ValueError, TypeError, RuntimeError):  # ragged, or not in this memory
        return np.empty(0, object)


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray))


def _to_numpy(value: Any) -> NDArray[np.generic]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value  # numpy has no such numbers
    return np.asarray(value)


def _count(batch: Any) -> int:
    first = batch
    while isinstance(first, (tuple, list, Mapping)) and len(first):
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    return len(first) if hasattr(first, "__len__") and getattr(first, "shape", True) else 1
