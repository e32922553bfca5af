"""Mixed precision: which layers hurt, and how many must go back to float for an accepted drop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.errors import QuantizeError
from penjing.events import Event, Listener, silent
from penjing.quantize.check import compare
from penjing.quantize.feeds import Feeds
from penjing.quantize.graph import weight_axis, weight_of
from penjing.quantize.runtime import Session

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
Rebuild = Callable[[Sequence[str]], ir.Model]


@dataclass(frozen=True)
class Sensitivity:
    """What one layer costs the network.

    Attributes:
        layer: Its name.
        gain_db: What the output gains when it alone goes back to float.
        worth: Error power removed, per share of the network's MACs that then runs in float.
    """

    layer: str
    gain_db: float
    worth: float


def top1(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """Share of samples whose largest output is the target."""
    return float(np.mean(outputs.argmax(axis=-1) == targets))


def measure(session: Session, feeds: Feeds, metric: Metric, reference: Session | None) -> tuple[float, int]:
    """Mean metric over the data's samples, and their number.

    Where the data has no targets, the fp32 network's own largest outputs are the targets.
    """
    total, count = 0.0, 0
    for feed, target in feeds.batches(64):
        wanted = target
        if wanted is None:
            if reference is None:
                raise QuantizeError(
                    "the data has no targets to measure the metric on", remedy="Give (inputs, target) batches"
                )
            wanted = next(iter(reference.run(feed).values())).argmax(axis=-1)
        value = float(metric(next(iter(session.run(feed).values())), wanted))
        if not np.isfinite(value):
            raise QuantizeError("the metric is not a finite number", remedy="Correct labels_metric")
        number = len(next(iter(feed.values())))
        total, count = total + value * number, count + number
    return total / count, count


def sensitivities(
    layers: Sequence[str],
    macs: dict[str, float],
    rebuild: Rebuild,
    reference: Session,
    feeds: Feeds,
    *,
    samples: int,
    listen: Listener = silent,
) -> list[Sensitivity]:
    """Each layer's gain, measured on the quantized network, most worthwhile first."""
    base = compare(reference, Session(rebuild(()), simulate=False), feeds, samples, batch=32)
    total = sum(macs.values())
    found = []
    for index, layer in enumerate(layers):
        without = compare(reference, Session(rebuild((layer,))), feeds, samples, batch=32)
        removed = 10 ** (-base / 10) - 10 ** (-without / 10)
        found.append(Sensitivity(layer, without - base, removed / max(macs[layer] / total, 1e-9)))
        listen(Event("quantize", "progress", index + 1, len(layers), "layer", {"gain_db": without - base}))
    return sorted(found, key=lambda s: -s.worth)


def fewest(count: int, holds: Callable[[int], bool]) -> int | None:
    """The least k in 1..count for which ``holds(k)``, by doubling and halving; None if not even all do."""
    high = 1
    while not holds(high):
        if high == count:
            return None
        high = min(high * 2, count)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def layer_macs(node: ir.Node) -> float:
    """Multiply-accumulates of a layer for one sample; free dims count as 1."""
    w = weight_of(node)
    shape = node.outputs[0].shape
    dims = [d if isinstance(d, int) else 1 for d in shape] if shape is not None else [1]
    positions = float(np.prod(dims[1:])) / (w.shape[weight_axis(node)] if len(dims) > 1 else 1)
    return max(positions, 1.0) * w.size
