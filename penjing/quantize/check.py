"""How far the quantized file is from fp32, and its int8 kernels from its own simulation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.errors import QuantizeError
from penjing.export.axes import free_sizes
from penjing.quantize.feeds import Feeds
from penjing.quantize.runtime import Session, batch_limit
from penjing.quantize.scheme import decibels

_LOSS_DB = 1.0
_BATCH = 8


class Powers:
    """Running signal and error power, by name, over the values that are finite in the reference.

    The others (the scores of what is masked out) must be the same: otherwise the error is infinite.
    """

    def __init__(self) -> None:
        self.signal: dict[str, float] = {}
        self.noise: dict[str, float] = {}
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, name: str, reference: NDArray[Any], other: NDArray[Any]) -> None:
        """Add one batch's ``reference²`` and ``(other − reference)²``."""
        wanted, found = np.asarray(reference, np.float64), np.asarray(other, np.float64)
        finite = np.isfinite(wanted)
        same = bool(np.isfinite(found[finite]).all())
        if not finite.all():
            same = same and np.array_equal(found[~finite], wanted[~finite], equal_nan=True)
            wanted, found = wanted[finite], found[finite]
        noise = float(np.square(found - wanted).sum()) if same else math.inf
        self.signal[name] = self.signal.get(name, 0.0) + float(np.square(wanted).sum())
        self.noise[name] = self.noise.get(name, 0.0) + noise
        held, all_values = self._counts.get(name, (0, 0))
        self._counts[name] = (held + wanted.size, all_values + finite.size)

    def db(self) -> dict[str, float]:
        """Signal to error of each name."""
        return {name: decibels(self.signal[name], self.noise[name]) for name in self.signal}

    def left_out(self) -> dict[str, float]:
        """Share of the reference's values that are not finite, of each name that has such."""
        return {name: 1 - held / count for name, (held, count) in self._counts.items() if held < count}

    def worst(self) -> float:
        """The least of them.

        Raises:
            QuantizeError: if nothing was added, or no value of a name is finite.
        """
        if not self.signal:
            raise QuantizeError("the network has no float output", remedy="Quantize one with float outputs")
        for name, share in self.left_out().items():
            if share == 1:
                raise QuantizeError(
                    "in fp32 all of this output is NaN or infinite on the calibration data",
                    layer=name,
                    remedy="Check the network in fp32 on this data first",
                )
        return min(self.db().values())


def compare(
    reference: Session, other: Session, feeds: Feeds, samples: int, batch: int | None = None
) -> float:
    """Signal to error of the outputs in dB, over ``samples``; of several outputs, the worst."""
    powers = Powers()
    for feed, _ in feeds.batches(batch, samples):
        for name, values, others in _pairs(reference.run(feed), other.run(feed)):
            if values.dtype.kind == "f":
                powers.add(name, values, others)
    return powers.worst()


def _pairs(
    first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]
) -> Iterable[tuple[str, NDArray[Any], NDArray[Any]]]:
    return ((name, first[name], second[name]) for name in first)


def layer_errors(
    model: ir.Model,
    quantized: ir.Model,
    tensors: dict[str, str],
    feeds: Feeds,
    *,
    samples: int,
    memory_mb: int,
) -> dict[str, float]:
    """Signal to error of inner tensors, in the simulated quantized network against fp32.

    Args:
        model: The prepared fp32 model.
        quantized: The emitted model.
        tensors: Name in ``model`` → name in ``quantized``.
        feeds: The data.
        samples: Samples to use, at most.
        memory_mb: Activations held at one time.
    """
    if not tensors:
        return {}
    reference = Session(model, outputs=list(tensors))
    simulated = Session(quantized, outputs=list(tensors.values()), simulate=True)
    powers = Powers()
    size = None
    if feeds.fixed is None:
        first = next(iter(feeds.batches(limit=1)))[0]
        size = batch_limit(reference, first, max(memory_mb // 2, 1))
    for feed, _ in feeds.batches(size, samples):
        wanted, found = reference.run(feed), simulated.run(feed)
        for name, there in tensors.items():
            powers.add(name, wanted[name], found[there])
    return powers.db()


@dataclass(frozen=True)
class FileCheck:
    """Three distances between fp32, the int8 file, and the same file simulated op by op in float; all in dB.

    Attributes:
        sqnr: The file's int8 kernels against fp32.
        simulated: The simulation against fp32.
        agreement: The int8 kernels against the simulation.
        samples: How many they are measured on.
        left_out: Share of fp32's values that are not finite, which are not measured, by output.
    """

    sqnr: float
    simulated: float
    agreement: float
    samples: int
    left_out: Mapping[str, float] = field(default_factory=dict)

    def sound(self, least: float) -> bool:
        """Whether the kernels compute what the file says.

        They agree to ``least`` dB, or they are as close to fp32 as the simulation is. In a deep network a
        rounding that falls the other way spreads until it is as large as the quantization error itself, which
        harms nothing; 16-bit sums that saturate take the file farther from fp32 than its simulation.
        """
        return self.agreement >= least or self.sqnr >= self.simulated - _LOSS_DB


def check_sizes(
    path: Path, reference: Session, feeds: Feeds, own_db: float, poor_db: float
) -> tuple[str, ...]:
    """Run a quantized file at another size of each that its callers choose beside the batch.

    Args:
        path: The file.
        reference: The fp32 network.
        feeds: The data, one sample of which is changed.
        own_db: Signal to error of the outputs at the sizes of the data.
        poor_db: What is told if it is reached at those sizes and not at another.

    Returns:
        What people should know of.

    Raises:
        QuantizeError: where fp32 runs and the file fails, gives other shapes, or what is not finite.
    """
    feed = next(iter(feeds.batches(1, 1 if feeds.fixed is None else None)))[0]
    shapes = {spec.name: spec.dims for spec in feeds.specs}
    names = {spec.name: spec.free for spec in feeds.specs}
    notes: list[str] = []
    for one in free_sizes(shapes, names, feed):
        for size, given in one.changed(feed):
            try:
                wanted = reference.run(given)
            except QuantizeError:
                continue
            db = _at_another_size(Session(path).run(given), wanted, f"{one.name} = {size}", path)
            if db < poor_db <= own_db:
                notes.append(
                    f"with {one.name} = {size} the outputs are {db:.1f} dB from fp32 only: calibrate with "
                    "data of the sizes that will come"
                )
            break
        else:
            notes.append(f"not run with another {one.name}, on which the fp32 network fails itself")
    return tuple(notes)


def _at_another_size(
    found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]], where: str, path: Path
) -> float:
    powers = Powers()
    for name, values, other in _pairs(wanted, found):
        if other.shape != values.shape:
            wrong = f"{name} in shape {list(other.shape)}, fp32 in {list(values.shape)}"
        elif values.dtype.kind == "f" and np.isfinite(values).all() and not np.isfinite(other).all():
            wrong = f"{name} not finite"
        else:
            if values.dtype.kind == "f":
                powers.add(name, values, other)
            continue
        raise QuantizeError(
            f"with {where} the file gives {wrong}",
            layer=path.name,
            remedy="Report this model; where it was exported with dynamic_axes, leave this size out of them",
        )
    return powers.worst()


def check_file(path: Path, reference: Session, feeds: Feeds, samples: int) -> FileCheck:
    """Measure a quantized file on ``samples`` samples, each run once per network."""
    kernels, simulation = Session(path), Session(path, simulate=True)
    pairs = {"sqnr": Powers(), "simulated": Powers(), "agreement": Powers()}
    measured = 0
    for feed, _ in feeds.batches(_BATCH, samples):
        measured += feeds.count(feed)
        wanted, found, imitated = reference.run(feed), kernels.run(feed), simulation.run(feed)
        for name in [n for n, values in wanted.items() if values.dtype.kind == "f"]:
            pairs["sqnr"].add(name, wanted[name], found[name])
            pairs["simulated"].add(name, wanted[name], imitated[name])
            pairs["agreement"].add(name, imitated[name], found[name])
    found_db = {name: powers.worst() for name, powers in pairs.items()}
    return FileCheck(**found_db, samples=measured, left_out=pairs["sqnr"].left_out())
