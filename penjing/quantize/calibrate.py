"""Run the fp32 graph over the calibration data and gather what quantization must know of its activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.errors import QuantizeError
from penjing.events import Event, Listener, silent
from penjing.quantize.feeds import Feeds
from penjing.quantize.observe import Observer, make_observer
from penjing.quantize.runtime import Session, batch_limit

Visit = Callable[[str, NDArray[Any]], None]
_MEAN_SAMPLES = 128


@dataclass
class Calibration:
    """What was seen.

    Attributes:
        observers: The range observer of each tensor.
        means: Mean over the samples of each layer input, in float64, without the batch axis.
        samples: Samples seen.
    """

    observers: dict[str, Observer]
    means: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    samples: int = 0

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The range of each tensor."""
        return {name: observer.range() for name, observer in self.observers.items()}


def calibrate(
    model: ir.Model,
    feeds: Feeds,
    tensors: Iterable[str],
    *,
    observer: str,
    mean_of: Iterable[str] = (),
    also: Mapping[str, Visit] | None = None,
    values_per_sample: int,
    memory_mb: int,
    seed: int = 0,
    listen: Listener = silent,
) -> Calibration:
    """One pass over the data: ranges of ``tensors`` and sample means of ``mean_of``.

    Args:
        model: A prepared fp32 graph.
        feeds: The calibration data.
        tensors: Values to find a range for.
        observer: Name of the observer.
        mean_of: Values whose mean over the samples is wanted; the first 128 samples are used.
        also: Further values, and what hears each of them in the same pass.
        values_per_sample: Values per tensor and sample shown to histograms, drawn once per tensor.
        memory_mb: See `stream`.
        seed: Of the draw.
        listen: Hears progress.

    Raises:
        QuantizeError: for unusable data or activations that are not finite.
    """
    found = Calibration({name: make_observer(observer) for name in tensors})
    drawn: dict[tuple[str, int], NDArray[np.int64]] = {}
    counts: dict[str, int] = {}
    averaged = set(mean_of)
    listeners = dict(also or {})

    def visit(name: str, x: NDArray[Any]) -> None:
        rows_NK = x.reshape(len(x), -1)
        low_N, high_N = rows_NK.min(axis=1), rows_NK.max(axis=1)
        require_finite(name, low_N, high_N)
        if name in found.observers:
            size = rows_NK.shape[1]
            if size > values_per_sample:
                key = (name, size)
                if key not in drawn:
                    draw = np.random.default_rng([seed, len(drawn)])
                    drawn[key] = np.sort(draw.integers(0, size, values_per_sample))
                sample_NK = rows_NK[:, drawn[key]]
            else:
                sample_NK = rows_NK
            found.observers[name].update(sample_NK, low_N, high_N)
        if name in listeners:
            listeners[name](name, x)
        if name in averaged and counts.get(name, 0) < _MEAN_SAMPLES:
            total = x.sum(axis=0).astype(np.float64)
            if name in found.means and found.means[name].shape == total.shape:
                found.means[name] += total
            elif name not in found.means:
                found.means[name] = total
            else:  # inputs of several sizes have no common mean
                averaged.discard(name)
                del found.means[name]
            counts[name] = counts.get(name, 0) + len(x)

    found.samples = stream(
        model, feeds, [*found.observers, *averaged, *listeners], visit, memory_mb=memory_mb, listen=listen
    )
    for name in found.means:
        found.means[name] /= counts[name]
    return found


def require_finite(name: str, *extremes: NDArray[Any]) -> None:
    """Refuse a tensor whose extremes are NaN or infinite.

    Raises:
        QuantizeError: naming the tensor.
    """
    if not all(np.isfinite(values).all() for values in extremes):
        raise QuantizeError(
            "its values are NaN or infinite on the calibration data",
            layer=name,
            remedy="Check the network in fp32 on this data first",
        )


def stream(
    model: ir.Model,
    feeds: Feeds,
    tensors: Iterable[str],
    visit: Visit,
    *,
    memory_mb: int,
    limit: int | None = None,
    listen: Listener = silent,
) -> int:
    """Show each tensor of each small batch to ``visit`` and forget it; gives the number of samples.

    The batch is made so small that the tensors together stay within ``memory_mb``.
    """
    wanted = list(dict.fromkeys(tensors))
    inputs = {value.name for value in model.graph.inputs}
    inner = [name for name in wanted if name not in inputs]
    session = Session(model, outputs=inner) if inner else None
    size: int | None = None
    seen = 0
    if session is not None and feeds.fixed is None:
        first = next(iter(feeds.batches(limit=1)))[0]
        size = batch_limit(session, first, memory_mb)
    total = min(feeds.most, limit or feeds.most)
    for feed, _ in feeds.batches(size, limit):
        values = session.run(feed) if session is not None else {}
        for name in wanted:
            visit(name, feed[name] if name in inputs else values[name])
        seen += feeds.count(feed)
        listen(Event("quantize", "progress", seen, total, "sample", message="calibrating"))
    return seen
