"""Which kind of range to take: what the network's own output says.

The error of one tensor does not tell what clipping it costs. A few large values at fixed places (the first
token of a transformer, one channel of its residual stream) are clipped alike in every sample, and such an
error adds up where rounding errors average out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from penjing.quantize.check import Powers
from penjing.quantize.feeds import Feeds
from penjing.quantize.observe import Observer
from penjing.quantize.observe.base import Extremes
from penjing.quantize.runtime import Session
from penjing.quantize.scheme import ActivationParams

Params = Mapping[str, ActivationParams]

_SAMPLES = 8
_BATCH = 4
_LEAST_GAIN_DB = 0.3
_SAME_WIDTH = 0.97


def widest(observers: Mapping[str, Observer]) -> dict[str, tuple[float, float]]:
    """Everything each observer heard."""
    return {
        name: (observer.low, observer.high)
        for name, observer in observers.items()
        if isinstance(observer, Extremes)
    }


def closest(
    choices: Mapping[str, Params], build: Callable[[Params], ir.Model], reference: Session, feeds: Feeds
) -> str:
    """The choice of ranges whose simulated output is closest to the reference; the first one unless another
    gains 0.3 dB.

    Args:
        choices: Parameters of all 8-bit tensors, by name of the choice.
        build: The network with its activations rounded by these parameters.
        reference: The float network.
        feeds: Calibration data; 8 samples are used.
    """
    names = list(choices)
    first = choices[names[0]]
    if all(_alike(first, choices[name]) for name in names[1:]):
        return names[0]
    sessions = {name: Session(build(params), simulate=True) for name, params in choices.items()}
    powers = {name: Powers() for name in choices}
    for feed, _ in feeds.batches(_BATCH, _SAMPLES):
        wanted = reference.run(feed)
        for choice, session in sessions.items():
            for output, values in session.run(feed).items():
                if values.dtype.kind == "f":
                    powers[choice].add(output, wanted[output], values)
    found = {name: power.worst() for name, power in powers.items()}
    best = max(names, key=lambda name: found[name])
    return best if found[best] > found[names[0]] + _LEAST_GAIN_DB else names[0]


def _alike(first: Params, second: Params) -> bool:
    return all(
        params.high - params.low >= _SAME_WIDTH * (second[name].high - second[name].low)
        for name, params in first.items()
    )
