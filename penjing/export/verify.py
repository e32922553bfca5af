"""Check an exported file in the runtime that serves it, against the model it was made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from penjing.batches import take_apart
from penjing.errors import PenjingError, VerifyError
from penjing.export.axes import FreeSize, free_sizes
from penjing.export.base import Runner, open_file
from penjing.export.exported import inference
from penjing.export.inputs import (
    Feeds,
    as_call,
    as_feeds,
    identifier,
    num_samples,
    output_names,
    resized,
    to_numpy,
)
from penjing.export.resolution import sigmoid_outputs
from penjing.floats import autocast_off
from penjing.graph.remembered import forgotten, own_copies

TOLERANCE = 1e-4
"""Largest difference allowed between float files, relative to the largest output."""

SMALLEST_SCALE = 2.0**-22 / TOLERANCE
"""Outputs of a sigmoid that are all smaller (about 0.002) are compared on this scale: runtimes compute it to
two float32 steps at 1 (see `penjing.export.resolution`), so that a right file of tiny probabilities differs
relatively by more."""

QUANTIZED_TOLERANCE = 0.5
"""For quantized files: root-mean-square difference relative to the output's (−6 dB); accuracy says the
rest."""

Metric = Callable[[Runner], float]


@dataclass(frozen=True)
class VerifyRow:
    """One batch size, or another size that the file leaves free.

    Attributes:
        batch: Samples fed.
        max_abs: Largest absolute difference over all outputs.
        relative: Largest difference over the largest reference output (the worst output counts); for outputs
            of a sigmoid over `SMALLEST_SCALE` if that is larger.
        rms_relative: Root-mean-square difference over root-mean-square reference.
        agreement: Share of samples with the same largest entry in the first output; None if that is not a
            matrix.
        shapes: Output shapes of the file.
        shapes_match: Whether they equal the reference's.
        finite: Whether every value is finite where the reference is.
        free: The size that was other than the example's, such as ``"height = 128"``; "" for the example's.
    """

    batch: int
    max_abs: float
    relative: float
    rms_relative: float
    agreement: float | None
    shapes: tuple[tuple[int, ...], ...]
    shapes_match: bool
    finite: bool
    free: str = ""

    @property
    def fed(self) -> str:
        """What was fed, for people."""
        return f"batch {self.batch}" + (f", {self.free}" if self.free else "")


@dataclass(frozen=True)
class VerifyResult:
    """What was found about one file.

    Attributes:
        path: The file.
        runtime: Runtime and version.
        rows: One for each batch size, and one for each other size that the file leaves free.
        tolerance: What was allowed.
        quantized: Whether ``rms_relative`` was compared (quantized files) or ``relative``.
        metric: The task metric of the file, if one was asked for.
        latency_ms: Median time of a call with the smallest batch, milliseconds.
        ok: Whether every row passes.
        diverges_at: First op whose output differs, when a check failed and the graphs could be compared.
        notes: What was not compared, and why.
    """

    path: str
    runtime: str
    rows: tuple[VerifyRow, ...]
    tolerance: float
    quantized: bool
    metric: float | None
    latency_ms: float
    ok: bool
    diverges_at: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def max_abs(self) -> float:
        """Largest absolute difference over all rows."""
        return max(row.max_abs for row in self.rows)

    @property
    def relative(self) -> float:
        """Largest relative difference over all rows."""
        return max(row.relative for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON (differences that are not finite become None)."""
        data = asdict(self)
        for row in data["rows"]:
            for key in ("max_abs", "relative", "rms_relative"):
                row[key] = row[key] if np.isfinite(row[key]) else None
            row["shapes"] = [list(shape) for shape in row["shapes"]]
        return data


class TorchRunner(Runner):
    """A torch module behind the runner interface: the reference. It is after each call as it was before.

    Attributes:
        written: Buffers that the forward wrote, and that were put back.
        autocast: Formats that blocks of the forward were to be computed in, and are not here.
        read_again: Other attributes that it kept tensors in, where a second call answers otherwise for them.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, names: Sequence[str] | None = None) -> None:
        self.model = model
        self.path = Path(type(model).__name__)
        self.runtime = f"torch {torch.__version__}"
        self.names = list(names or [])
        leaves, self._spec = torch.utils._pytree.tree_flatten(as_call(example_inputs, model))
        self._leaves = leaves
        self.written: set[str] = set()
        self.autocast: set[str] = set()
        self.read_again: set[str] | None = None
        self.inputs = ()
        self.outputs = ()

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """Outputs in the order of the module's own output structure."""
        # a stored program calls its inputs as the forward does, in the same order
        names = self.names if feeds.keys() == set(self.names) else feeds
        given = iter([torch.from_numpy(feeds[name]) for name in names])
        parameter = next(self.model.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        leaves = [
            next(given).to(device=device, dtype=leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in self._leaves
        ]

        def call() -> Any:
            args, kwargs = torch.utils._pytree.tree_unflatten(own_copies(leaves), self._spec)
            return self.model(*args, **kwargs)

        with (
            inference(self.model) as written,
            autocast_off() as autocast,
            forgotten(self.model) as changed,
        ):
            out = call()
            kept = changed()
            if self.read_again is None:
                self.read_again = kept if kept and not _same(out, call()) else set()
        self.written |= written
        self.autocast |= autocast
        self.outputs = tuple(output_names(out, self.names, self.model))
        return [to_numpy(t) for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


def _same(a: Any, b: Any) -> bool:
    leaves = [torch.utils._pytree.tree_leaves(out) for out in (a, b)]
    pairs = [(x, y) for x, y in zip(*leaves, strict=True) if isinstance(x, torch.Tensor)]
    return all(x.shape == y.shape and torch.allclose(x, y, equal_nan=True) for x, y in pairs)


def verify(
    file: Path | str | Runner,
    reference: nn.Module | Runner,
    inputs: Any,
    *,
    batch_sizes: Sequence[int] = (1, 3, 8),
    metric: Metric | None = None,
    tolerance: float | None = None,
    quantized: bool = False,
    layout: str = "nchw",
    source: Path | None = None,
    raise_on_failure: bool = True,
) -> VerifyResult:
    """Run a file in its own runtime on several batch sizes and compare it with the reference.

    What the file leaves free beside the batch is fed at another size, too: twice the example's, or half of it
    where the model takes no more.

    Args:
        file: An exported file, opened from disk, or a runner that already did.
        reference: The module (run in inference mode) or another file's runner.
        inputs: Real inputs: a tensor, tuple, dict, or a batch ``(inputs, target)``. More samples than given
            are made from these with a little noise.
        batch_sizes: What to feed. A file whose batch is fixed is fed that size alone.
        metric: Computes the task metric from the file's runner.
        tolerance: Largest relative difference; by default 1e-4, or 0.5 root-mean-square for quantized files.
        quantized: Compare by root-mean-square, as rounding moves single outputs.
        layout: ``"nhwc"`` if the file takes and gives images with channels last.
        source: The ONNX file it was made from: helps to name the first op that differs.
        raise_on_failure: Raise, or only report.

    Returns:
        Rows, metric and latency.

    Raises:
        VerifyError: if shapes or values differ or are not finite, naming the first op that diverges where
            possible; if the reference fails on every batch size. A size on which it fails, as after a
            ``squeeze()`` that drops a batch of one, is left out, and the notes say so.
    """
    runner = file if isinstance(file, Runner) else open_file(file)
    names = [spec.name for spec in runner.inputs]
    inputs = take_apart(inputs, names)[0]
    feeds = as_feeds(inputs, names)
    if isinstance(reference, nn.Module):
        reference = TorchRunner(reference, inputs, names)
    allowed = tolerance if tolerance is not None else (QUANTIZED_TOLERANCE if quantized else TOLERANCE)
    fixed = next((spec.shape[0] for spec in runner.inputs if spec.shape and spec.shape[0] is not None), None)
    unbatched = fixed is not None and not _has_free_dimension(runner)
    sizes = [fixed] if unbatched and fixed is not None else sorted(set(batch_sizes))
    graph = runner.path if runner.path.suffix.lower() == ".onnx" else source
    rounded = cache(lambda: None if graph is None else sigmoid_outputs(graph))
    rows: list[VerifyRow] = []
    dropped: list[VerifyRow] = []
    notes: list[str] = []

    def compared(given: Feeds, free: str = "") -> Exception | None:
        """Add a row; or what the model itself raises on these inputs."""
        try:
            theirs = reference.run(given)
        except Exception as error:  # any that a forward can raise
            return error
        order = _order(runner, reference)
        ours = _run(runner, given, layout)
        ours = [ours[i] for i in order] if order else ours
        floors = _floors([runner.outputs[i] for i in order], theirs, rounded)
        rows.append(row := _compare(num_samples(given), ours, theirs, floors, free))
        if row.batch == 1 and any(t.ndim < o.ndim for t, o in zip(theirs, ours, strict=False)):
            dropped.append(row)
        return None

    fed: list[Feeds] = []
    failure = None
    for size in sizes:
        given = resized(feeds, size)
        if (error := compared(given)) is None:
            fed.append(given)
        else:
            notes.append(f"not compared with batch {size}, on which the model itself fails: {_told(error)}")
            failure = error
    if failure is not None and not rows:
        if isinstance(failure, PenjingError):
            raise failure
        raise VerifyError(notes[-1], layer=str(runner.path), remedy="Give inputs that the model takes")
    for one in _free_sizes(runner, fed[0], layout):
        for size, given in one.changed(fed[0]):
            if (error := compared(given, f"{one.name} = {size}")) is None:
                fed.append(given)
                break
        else:
            assert error is not None
            notes.append(
                f"not compared with another {one.name}, on which the model itself fails: {_told(error)}"
            )
    measure = "rms_relative" if quantized else "relative"
    bad = [row for row in rows if not (row.shapes_match and row.finite and getattr(row, measure) <= allowed)]
    diverges = None
    if bad:
        diverges = _diverging(runner, reference, fed[rows.index(bad[0])], allowed, source)
    result = VerifyResult(
        path=str(runner.path),
        runtime=runner.runtime,
        rows=tuple(rows),
        tolerance=allowed,
        quantized=quantized,
        metric=None if metric is None else float(metric(runner)),
        latency_ms=_latency(runner, _turned(fed[0], layout)),
        ok=not bad,
        diverges_at=diverges,
        notes=tuple(notes),
    )
    if bad and raise_on_failure:
        remedy = _DROPS if bad[0] in dropped else _REMEDY_INT8 if quantized else _REMEDY
        raise VerifyError(_why(bad[0], measure, allowed, diverges), layer=str(runner.path), remedy=remedy)
    return result


_REMEDY = "Do not deploy this file; look at the op named, or allow a larger tolerance"
_REMEDY_INT8 = (
    "Compare it on inputs like those that its ranges were taken from (on the command line --data). If these "
    f"were such: {_REMEDY[0].lower()}{_REMEDY[1:]}"
)
_DROPS = (
    "The model drops a batch of one, as squeeze() does where no dimension is named: name it in the forward, "
    "x.squeeze(-1), or leave 1 out of batch_sizes"
)


def _told(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if line[-1] not in ":>"] or lines  # TensorFlow begins with where it was
    return f"{type(error).__name__}: {(lines or [''])[0][:200]}"


def _diverging(
    runner: Runner, reference: Runner, feeds: Feeds, allowed: float, source: Path | None
) -> str | None:
    """The first op that differs; None where the graphs cannot be walked, which is no word on the file."""
    from penjing.export.diverge import first_divergence

    try:
        return first_divergence(runner, reference, feeds, allowed, source)
    except Exception:  # each runtime has its own; what was found to differ is to be said
        return None


def _has_free_dimension(runner: Runner) -> bool:
    return any(spec.shape and spec.shape[0] is None for spec in runner.inputs)


def _free_sizes(runner: Runner, feeds: Feeds, layout: str) -> list[FreeSize]:
    """What the file leaves free beside the batch, by the dimensions of the reference's inputs."""
    shapes: dict[str, list[int | None]] = {}
    names: dict[str, list[str | None]] = {}
    for spec in runner.inputs:
        rank = len(spec.shape)
        places = (0, 3, 1, 2) if layout == "nhwc" and rank == 4 else range(rank)
        shapes[spec.name] = [spec.shape[i] for i in places]
        names[spec.name] = [spec.free[i] if spec.free else None for i in places]
    return free_sizes(shapes, names, feeds)


def _turned(feeds: Feeds, layout: str) -> Feeds:
    if layout != "nhwc":
        return feeds
    return {k: np.ascontiguousarray(v.transpose(0, 2, 3, 1)) if v.ndim == 4 else v for k, v in feeds.items()}


def _run(runner: Runner, feeds: Feeds, layout: str) -> list[np.ndarray]:
    try:
        outputs = runner.run(_turned(feeds, layout))
    except PenjingError:
        raise
    except Exception as error:  # each runtime has its own
        raise VerifyError(
            f"{runner.runtime} cannot run the file: {_told(error)}", layer=str(runner.path), remedy=_REMEDY
        ) from error
    return [o.transpose(0, 3, 1, 2) if layout == "nhwc" and o.ndim == 4 else o for o in outputs]


def _order(runner: Runner, reference: Runner) -> list[int]:
    """Which of the file's outputs answers each of the reference's. Signatures of TensorFlow's formats are
    maps without an order, so names decide where both have the same."""
    wanted = [identifier(name) for name in reference.outputs]
    have = [identifier(name) for name in runner.outputs]
    if len(set(have)) < len(have) or sorted(wanted) != sorted(have):
        return list(range(len(have)))
    return [have.index(name) for name in wanted]


def _floors(
    names: list[str], theirs: list[np.ndarray], rounded: Callable[[], frozenset[str] | None]
) -> list[float]:
    """The smallest scale that each output is compared on; ``rounded`` tells what sigmoids reach, if known.

    It reads the whole file, so it is asked only where an output is small enough for the answer to matter.
    """
    if not any(_is_tiny(t) for t in theirs):
        return [1e-12] * len(theirs)
    known = rounded()
    if known is None:  # what could be a probability may come from a sigmoid
        likely = [bool(t.size and t.min() >= 0 and t.max() <= 1) for t in theirs]
    else:
        likely = [identifier(name) in known for name in names] or [False] * len(theirs)
    return [SMALLEST_SCALE if one else 1e-12 for one in likely]


def _is_tiny(output: np.ndarray) -> bool:
    """Whether all of its finite values are below `SMALLEST_SCALE`."""
    finite = output[np.isfinite(output)].astype(np.float64)
    return bool(finite.size and np.abs(finite).max() < SMALLEST_SCALE)


def _compare(
    batch: int, ours: list[np.ndarray], theirs: list[np.ndarray], floors: list[float], free: str
) -> VerifyRow:
    shapes = tuple(tuple(o.shape) for o in ours)
    match = shapes == tuple(tuple(t.shape) for t in theirs)
    max_abs = relative = rms = 0.0 if match else float("inf")
    finite = match
    agreement = None
    for ours_i, theirs_i, floor in zip(ours, theirs, floors, strict=True) if match else ():
        a, b = ours_i.astype(np.float64), theirs_i.astype(np.float64)
        where = np.isfinite(b)
        finite &= bool(np.isfinite(a[where]).all())
        if not where.any():
            continue
        difference = np.abs(a[where] - b[where])
        max_abs = max(max_abs, float(difference.max()))
        relative = max(relative, float(difference.max() / max(np.abs(b[where]).max(), floor)))
        size = float(np.sqrt(np.mean(b[where] ** 2)))
        rms = max(rms, float(np.sqrt(np.mean(difference**2)) / max(size, 1e-12)))
    if match and ours and ours[0].ndim == 2 and ours[0].shape[1] > 1:
        agreement = float(np.mean(ours[0].argmax(1) == theirs[0].argmax(1)))
    return VerifyRow(batch, max_abs, relative, rms, agreement, shapes, match, finite, free)


def _latency(runner: Runner, feeds: Feeds) -> float:
    """Median milliseconds of a call; few calls, since the file's speed is measured properly elsewhere."""
    times: list[float] = []
    deadline = time.perf_counter() + 1.0
    while len(times) < 3 or (len(times) < 20 and time.perf_counter() < deadline):
        start = time.perf_counter()
        runner.run(feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def _why(row: VerifyRow, measure: str, allowed: float, diverges: str | None) -> str:
    where = f"; the first op that differs is {diverges}" if diverges else ""
    if not row.shapes_match:
        return f"with {row.fed} it gives the shapes {list(row.shapes)}, not the model's{where}"
    if not row.finite:
        return f"with {row.fed} it gives values that are not finite{where}"
    kind = "root-mean-square" if measure == "rms_relative" else "largest"
    value = getattr(row, measure)
    return f"with {row.fed} the {kind} relative difference is {value:.2e}, above {allowed:.0e}{where}"
