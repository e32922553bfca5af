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
from penjing.quantize.rules import RECURRENT_OPS
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
    """Share of samples, or of positions ``(N, K, …)`` or ``(N, …, K)``, whose largest output is the target.

    Raises:
        QuantizeError: where the targets are not classes of the outputs.
    """
    for axis in {1, outputs.ndim - 1} if targets.dtype.kind in "iu" and outputs.ndim > 1 else ():
        answers = outputs.argmax(axis=axis)
        if answers.shape == targets.shape and outputs.shape[axis] > 1:
            return float(np.mean(answers == targets))
    raise QuantizeError(
        f"the targets ({targets.dtype} of shape {list(targets.shape)}) are not classes of the outputs "
        f"({list(outputs.shape)}), so max_drop has no accuracy to go by",
        remedy="Give labels_metric, a function of outputs and targets",
    )


def agreement(outputs: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Share of samples with the same largest output; R² where the outputs are not scores ``(N, K)``."""
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return float(np.mean(outputs.argmax(axis=1) == wanted.argmax(axis=1)))
    exact = wanted.astype(np.float64)
    return float(1.0 - np.square(outputs - exact).mean() / max(exact.var(), 1e-30))


def measure(session: Session, feeds: Feeds, metric: Metric | None, reference: Session) -> tuple[float, int]:
    """The metric over the data's samples, and their number.

    Args:
        session: What is measured.
        feeds: The data.
        metric: A function of outputs and targets; None is `top1`.
        reference: The fp32 network. Where the data has no targets its largest outputs are; without a metric
            the `agreement` with it is measured.
    """
    outputs, targets, wanted = [], [], []
    for feed, target in feeds.batches(64, targets=True):
        outputs.append(next(iter(session.run(feed).values())))
        if target is None:
            wanted.append(next(iter(reference.run(feed).values())))
        else:
            targets.append(target)
    found = _joined(outputs)
    if wanted:
        exact = _joined(wanted)
        value = agreement(found, exact) if metric is None else metric(found, exact.argmax(axis=-1))
    else:
        value = (metric or top1)(found, _joined(targets))
    if not np.isfinite(value):
        raise QuantizeError("the metric is not a finite number", remedy="Correct labels_metric")
    return float(value), len(found)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise QuantizeError(
            f"a metric is measured on all samples at once, and batches differ in shape ({sorted(shapes)})",
            remedy="Give eval_data whose batches have one length",
        )
    return np.concatenate(parts)


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
    if node.op_type in RECURRENT_OPS:
        steps, sizes = node.inputs[0], [value.shape for value in node.inputs[1:3] if value is not None]
        length = steps.shape[0] if steps is not None and steps.shape is not None else 1
        once = sum(float(np.prod([d for d in size or () if isinstance(d, int)])) for size in sizes)
        return (length if isinstance(length, int) else 1) * once
    if node.op_type == "Gather":
        return 1.0  # looking up multiplies nothing
    w = weight_of(node)
    shape = node.outputs[0].shape
    dims = [d if isinstance(d, int) else 1 for d in shape] if shape is not None else [1]
    positions = float(np.prod(dims[1:])) / (w.shape[weight_axis(node)] if len(dims) > 1 else 1)
    return max(positions, 1.0) * w.size
