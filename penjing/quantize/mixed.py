"""Mixed precision: which layers hurt, and how many must go back to float for an accepted drop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.batches import IGNORED
from penjing.errors import PenjingError, QuantizeError
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
    """Share of samples, or of positions ``(N, K, …)`` or ``(N, …, K)``, whose largest output is the target;
    what is labelled `IGNORED` does not count.

    Raises:
        QuantizeError: where the targets are not classes of the outputs.
    """
    return _top1([outputs], [targets])


def _top1(outputs: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]]) -> float:
    """`top1` over batches, whose lengths may differ; one axis holds the classes in all of them."""
    for axis in (1, outputs[0].ndim - 1):
        if all(_are_classes(z, y, axis) for z, y in zip(outputs, targets, strict=True)):
            _check_labels(targets, outputs[0].shape[axis])
            pairs = zip(outputs, targets, strict=True)
            right = np.concatenate([(z.argmax(axis=axis) == y)[y != IGNORED] for z, y in pairs])
            if not right.size:
                raise QuantizeError(
                    f"every label of the data is {IGNORED}, which does not count",
                    remedy="Give labels, or data without targets: agreement with fp32 is measured then",
                )
            return float(right.mean())
    shape = [sum(map(len, targets)), *targets[0].shape[1:]]
    raise QuantizeError(
        f"the targets ({targets[0].dtype} of shape {shape}) are not classes of the outputs "
        f"({[sum(map(len, outputs)), *outputs[0].shape[1:]]}), so max_drop has no accuracy to go by",
        remedy="Give labels_metric, a function of outputs and targets",
    )


def _check_labels(targets: Sequence[NDArray[Any]], count: int) -> None:
    """Refuse labels that can never be right: the first output may not be the one that classifies."""
    for labels in targets:
        strange = labels[(labels != IGNORED) & ((labels < 0) | (labels >= count))]
        if strange.size:
            raise QuantizeError(
                f"label {strange[0]} is outside the {count} classes of the network's first output",
                remedy=f"Correct the labels ({IGNORED} does not count), or give labels_metric",
            )


def _are_classes(outputs: NDArray[Any], targets: NDArray[Any], axis: int) -> bool:
    """Whether the targets may be places along this axis of the outputs."""
    shape = outputs.shape
    return (
        targets.dtype.kind in "iu"
        and 0 < axis < outputs.ndim
        and shape[axis] > 1
        and targets.shape == shape[:axis] + shape[axis + 1 :]
    )


def agreement(outputs: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Share of samples with the same largest output; R² where the outputs are not scores ``(N, K)``
    (over what is finite)."""
    return _agreement([outputs], [wanted])


def _agreement(outputs: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    """`agreement` over batches, whose lengths may differ."""
    if len({part.shape[1:] for part in wanted}) == 1 and wanted[0].ndim == 2 and wanted[0].shape[1] > 1:
        same = [z.argmax(axis=1) == y.argmax(axis=1) for z, y in zip(outputs, wanted, strict=True)]
        return float(np.concatenate(same).mean())
    found, exact = (np.concatenate([part.ravel() for part in parts]) for parts in (outputs, wanted))
    finite = np.isfinite(exact)
    found, exact = found[finite], exact[finite].astype(np.float64)
    if not exact.size:
        raise QuantizeError(
            "in fp32 all of the first output is NaN or infinite, so max_drop has nothing to go by",
            remedy="Check the network in fp32 on this data first",
        )
    return float(1.0 - np.square(found - exact).mean() / max(exact.var(), 1e-30))


def measure(session: Session, feeds: Feeds, metric: Metric | None, reference: Session) -> tuple[float, int]:
    """The metric over the data's samples, and their number.

    Args:
        session: What is measured.
        feeds: The data.
        metric: A function of outputs and targets; None is `top1`, or where the data has no targets the
            `agreement` with the reference.
        reference: The fp32 network.

    Raises:
        QuantizeError: for targets that some batches lack, or all where a metric is given, or that the metric
            does not go with.
    """
    outputs, targets, wanted = [], [], []
    for feed, target in feeds.batches(64, targets=True):
        outputs.append(next(iter(session.run(feed).values())))
        if target is None:
            wanted.append(next(iter(reference.run(feed).values())))
        else:
            targets.append(target)
    if wanted and targets:
        raise QuantizeError(
            f"{len(targets)} batches of the data have targets and {len(wanted)} have none",
            remedy="Give targets with all batches, or with none: agreement with fp32 is measured then",
        )
    if metric is None:
        value = _agreement(outputs, wanted) if wanted else _top1(outputs, targets)
    elif wanted:
        raise QuantizeError(
            "labels_metric compares outputs with targets, and the data has none",
            remedy="Give batches of (inputs, target), as eval_data where calibration has no targets, or no "
            "labels_metric: agreement with fp32 is measured then",
        )
    else:
        value = _judged(metric, _joined(outputs), _joined(targets), session.names)
    if not np.isfinite(value):
        raise QuantizeError(
            "the metric is not a finite number",
            remedy="Correct labels_metric" if metric is not None else "Check the network on this data first",
        )
    return float(value), sum(map(len, outputs))


def _judged(metric: Metric, outputs: NDArray[Any], targets: NDArray[Any], names: Sequence[str]) -> float:
    try:
        return metric(outputs, targets)
    except PenjingError:
        raise
    except Exception as error:  # the user's own code
        which = f" (the first of {', '.join(names)})" if len(names) > 1 else ""
        raise QuantizeError(
            f"labels_metric fails on outputs{which} of shape {list(outputs.shape)} and targets of shape "
            f"{list(targets.shape)}: {type(error).__name__}: {error}",
            remedy="Correct labels_metric"
            + (", or let the network give what it judges first" if which else ""),
        ) from error


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise QuantizeError(
            f"labels_metric gets all samples at once, and batches differ in shape ({sorted(shapes)})",
            remedy="Give eval_data whose batches have one length, or no labels_metric",
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


def alone(
    layers: Sequence[str], rebuild: Rebuild, reference: Session, feeds: Feeds, samples: int
) -> list[str]:
    """The layers by the error that each makes alone in 8 bits, the largest first.

    Where several layers ruin the output, none of them gains much by going back alone, as `sensitivities`
    measures it; which layers can stay is seen from the other side.
    """
    found = {}
    for layer in layers:
        others = [other for other in layers if other != layer]
        found[layer] = compare(reference, Session(rebuild(others)), feeds, samples, batch=32)
    return sorted(layers, key=lambda layer: found[layer])


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
