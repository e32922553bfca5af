"""Latency: candidates run in turns, so that a drifting clock or a busy neighbour falls on all alike."""

from __future__ import annotations

import gc
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import MeasureError


@dataclass(frozen=True)
class Latency:
    """Time of one run, in milliseconds.

    Attributes:
        median_ms: Median.
        p95_ms: 95th percentile.
        low_ms: Lower end of the 95% interval of the median, from order statistics (no shape assumed).
        high_ms: Upper end.
        batch: Samples in one run.
        threads: Threads that the runtime may use.
        runtime: Its name and version.
        device: The processor.
        num_runs: Timed runs.
        quiet_ms: What the median would be if nothing else ran, when something did: the 5th percentile of the
            shorter of a run's time by the clock and by the processor's account for this process (which does
            not go on while another process runs, but counts every thread).
    """

    median_ms: float
    p95_ms: float
    low_ms: float
    high_ms: float
    batch: int
    threads: int
    runtime: str
    device: str
    num_runs: int
    quiet_ms: float = float("nan")

    def __str__(self) -> str:
        return (
            f"{self.median_ms:.3g} ms (p95 {self.p95_ms:.3g} ms, batch {self.batch}, {self.threads} threads, "
            f"{self.runtime})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: value for name, value in vars(self).items() if value == value}


@dataclass(frozen=True)
class Candidate:
    """Something to time: a function, the facts to print beside its number, what holds while it is timed."""

    run: Callable[[], object]
    batch: int = 1
    threads: int = 1
    runtime: str = "python"
    around: Callable[[], AbstractContextManager[object]] = nullcontext


def latency(
    candidates: Mapping[str, Callable[[], object] | Candidate],
    *,
    num_runs: int = 50,
    num_warmup: int = 5,
    max_seconds: float = 20.0,
    batch: int = 1,
    threads: int = 1,
    runtime: str = "python",
) -> dict[str, Latency]:
    """Time candidates interleaved: each round runs every one once, beginning with another one each time.

    Args:
        candidates: Functions by name, or `Candidate` with their own facts.
        num_runs: Timed rounds.
        num_warmup: Rounds before, not timed.
        max_seconds: No new round starts after so long; at least five are made.
        batch: Recorded for plain functions; likewise ``threads`` and ``runtime``.

    Returns:
        A `Latency` for each name.

    Raises:
        MeasureError: with nothing to time, or naming the candidate that failed.
    """
    if not candidates or num_runs < 1:
        raise MeasureError(
            f"{len(candidates)} candidates and {num_runs} runs leave nothing to time",
            remedy="Give at least one candidate and one run",
        )
    items = [
        (name, each if isinstance(each, Candidate) else Candidate(each, batch, threads, runtime))
        for name, each in candidates.items()
    ]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in items}
    with ExitStack() as stack:
        for _, candidate in items:
            stack.enter_context(candidate.around())
        for _ in range(num_warmup):
            for name, candidate in items:
                _run_once(name, candidate)
        stack.enter_context(_no_collection())
        started = time.perf_counter()
        for done in range(num_runs):
            if done >= 5 and time.perf_counter() - started > max_seconds:
                break
            turn = done % len(items)
            for name, candidate in items[turn:] + items[:turn]:
                times[name].append(_run_once(name, candidate))
    return {name: _summary(times[name], candidate) for name, candidate in items}


@contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _run_once(name: str, candidate: Candidate) -> tuple[float, float]:
    """Milliseconds by the clock, and of processor time of all threads."""
    try:
        spent, start = time.process_time_ns(), time.perf_counter_ns()
        candidate.run()
        end = time.perf_counter_ns()
        return (end - start) / 1e6, (time.process_time_ns() - spent) / 1e6
    except Exception as error:
        raise MeasureError(
            f"a run failed ({type(error).__name__}: {error})",
            layer=name,
            remedy="Make it run once before timing it",
        ) from error


def _summary(times_ms: list[tuple[float, float]], candidate: Candidate) -> Latency:
    both = np.asarray(times_ms)
    ordered = np.sort(both[:, 0])
    n = len(ordered)
    # Normal approximation of the binomial ranks around the median (Conover 1999, section 3.2).
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return Latency(
        median_ms=float(np.median(ordered)),
        p95_ms=float(np.quantile(ordered, 0.95)),
        low_ms=float(ordered[low]),
        high_ms=float(ordered[high]),
        batch=candidate.batch,
        threads=candidate.threads,
        runtime=candidate.runtime,
        device=device_name(),
        num_runs=n,
        quiet_ms=float(np.quantile(both.min(1), 0.05)),
    )


@lru_cache(maxsize=1)
def device_name() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def onnx_session(path: Path | str, threads: int = 1) -> Any:
    """An ONNX Runtime CPU session with a fixed number of threads.

    Idle threads do not spin: sessions timed in turns would otherwise take the processor from each other.

    Raises:
        MeasureError: if the runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise MeasureError(
            f"ONNX Runtime does not open it ({error})", layer=str(path), remedy="Export the model again"
        ) from error


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def onnx_candidate(
    path: Path | str,
    *,
    batch: int = 1,
    threads: int = 1,
    feeds: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Candidate:
    """An ONNX file to time in ONNX Runtime, on the given feeds or on random ones of the file's input shapes.

    Args:
        path: The file.
        batch: Batch size of the random feeds.
        threads: Of the runtime.
        feeds: Arrays by input name.
        sizes: Of dimensions that the file leaves free besides the batch: by name (``length``), or by input
            and place (``ids:1``, ``*:1``).

    Raises:
        MeasureError: if an input has such a dimension, and there are neither feeds nor its size.
    """
    import onnxruntime

    session = onnx_session(path, threads)
    ready = dict(feeds) if feeds is not None else _random_feeds(session, batch, str(path), sizes or {})
    return Candidate(
        lambda: session.run(None, ready), batch, threads, f"onnxruntime {onnxruntime.__version__}"
    )


def _random_feeds(session: Any, batch: int, path: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    feeds = {}
    # beside a free batch, a first size that is fixed is that of what all samples share
    free = any(entry.shape and not isinstance(entry.shape[0], int) for entry in session.get_inputs())
    for entry in session.get_inputs():
        shape = _shape(entry.name, entry.shape, batch, sizes, path)
        if entry.type not in _DTYPES:
            raise MeasureError(
                f"input {entry.name!r} of {entry.type}{entry.shape} leaves open what to feed",
                layer=path,
                remedy="Give feeds",
            )
        if shape and shape[0] != batch and not free:
            raise MeasureError(
                f"input {entry.name!r} takes batches of {shape[0]} only, not {batch}",
                layer=path,
                remedy="Export with a dynamic batch",
            )
        feeds[entry.name] = _random(shape, np.dtype(_DTYPES[entry.type]), rng)
    return feeds


def _shape(
    name: str, written: Iterable[int | str | None], batch: int, sizes: Mapping[str, int], path: str
) -> list[int]:
    """The shape of an input with its free sizes filled in."""
    shape = []
    for at, size in enumerate(written):
        if isinstance(size, int):
            shape.append(size)
            continue
        known = (sizes[key] for key in (f"{name}:{at}", f"*:{at}", size or "") if key in sizes)
        found = batch if at == 0 else next(known, None)
        if found is None:
            raise MeasureError(
                f"dimension {at} of input {name!r} is free{f' ({size})' if size else ''}",
                layer=path,
                remedy=f"Give its size: --size {size or f'{name}:{at}'}=…, in Python sizes={{…}} or feeds",
            )
        shape.append(found)
    return shape


def _random(shape: list[int], dtype: np.dtype[Any], rng: np.random.Generator) -> Any:
    """Noise, where that is of the type; else zeros, the one index that every embedding has."""
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)


def latency_onnx(
    path: Path | str,
    *,
    batch: int = 1,
    threads: int = 1,
    feeds: Mapping[str, Any] | None = None,
    num_runs: int = 50,
    max_seconds: float = 20.0,
) -> Latency:
    """Time one ONNX file in ONNX Runtime. To compare files, give `onnx_candidate` of each to `latency`."""
    candidate = onnx_candidate(path, batch=batch, threads=threads, feeds=feeds)
    return latency({str(path): candidate}, num_runs=num_runs, max_seconds=max_seconds)[str(path)]


def torch_candidate(model: Any, example_inputs: Any, *, batch: int = 1, threads: int = 1) -> Candidate:
    """A module to time in eval mode; its first sample is repeated to make the batch. What its forward writes
    is put back afterwards.
    """
    import torch

    from penjing.graph.remembered import put_back
    from penjing.measure.count import first_sample  # the same notion of what a sample is
    from penjing.modes import eval_mode

    args, kwargs, _ = first_sample(model, example_inputs)

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == 1:
            return leaf.repeat(batch, *([1] * (leaf.dim() - 1)))
        return leaf

    args, kwargs = torch.utils._pytree.tree_map(widen, (args, kwargs))

    def run() -> None:
        with _torch_threads(threads), torch.inference_mode():
            model(*args, **kwargs)

    @contextmanager
    def around() -> Iterator[None]:
        with put_back(model), eval_mode(model):
            yield

    return Candidate(run, batch, threads, f"torch {torch.__version__}", around)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def latency_torch(
    model: Any,
    example_inputs: Any,
    *,
    batch: int = 1,
    threads: int = 1,
    num_runs: int = 50,
    max_seconds: float = 20.0,
) -> Latency:
    """Time a module in PyTorch, in eval mode."""
    candidate = torch_candidate(model, example_inputs, batch=batch, threads=threads)
    return latency({"model": candidate}, num_runs=num_runs, max_seconds=max_seconds)["model"]


def saved_model_candidate(
    path: Path | str,
    *,
    batch: int = 1,
    threads: int | None = None,
    feeds: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Candidate:
    """A TensorFlow SavedModel's default serving signature to time; arguments as for `onnx_candidate`, sizes
    by input and place.

    TensorFlow fixes its threads when it starts. Without ``threads``, the number it has is what is recorded
    (0: it chose by itself, recorded as the machine's count).

    Raises:
        MeasureError: without TensorFlow, for a folder that is not a SavedModel with a serving signature, or
            for another number of threads than it has started with.
    """
    import os

    from penjing.export.coexist import entering_tensorflow

    try:
        with entering_tensorflow():
            import tensorflow as tf
    except ImportError as error:
        raise MeasureError(
            "timing a SavedModel needs TensorFlow", layer=str(path), remedy="Run: pip install 'penjing[tf]'"
        ) from error
    if threads is not None:
        _start_tensorflow(tf, threads, str(path))
    try:
        loaded = tf.saved_model.load(str(path))
        signature = loaded.signatures["serving_default"]
    except (OSError, KeyError) as error:
        raise MeasureError(
            f"TensorFlow does not open it ({error})", layer=str(path), remedy="Give a SavedModel folder"
        ) from error
    if feeds is None:
        specs = signature.structured_input_signature[1]
        rng = np.random.default_rng(0)
        feeds = {}
        for name, spec in specs.items():
            shape = _shape(name, spec.shape, batch, sizes or {}, str(path))
            feeds[name] = _random(shape, np.dtype(spec.dtype.as_numpy_dtype), rng)
    ready = {name: tf.constant(value) for name, value in feeds.items()}
    has = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1

    def run() -> None:
        for value in signature(**ready).values():
            value.numpy()

    # `loaded` must outlive the signature, which holds its variables weakly.
    run.keep = loaded  # type: ignore[attr-defined]
    return Candidate(run, batch, has, f"tensorflow {tf.__version__}")


def _start_tensorflow(tf: Any, threads: int, path: str) -> None:
    threading = tf.config.threading
    try:
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(1)  # one operation at a time, as in ONNX Runtime
    except RuntimeError as error:
        raise MeasureError(
            f"TensorFlow has started in this process, not with {threads} threads for one operation at a time",
            layer=path,
            remedy="Time it in a new process, or leave threads out",
        ) from error


def latency_saved_model(
    path: Path | str,
    *,
    batch: int = 1,
    threads: int | None = None,
    feeds: Mapping[str, Any] | None = None,
    num_runs: int = 50,
    max_seconds: float = 20.0,
) -> Latency:
    """Time one SavedModel in TensorFlow."""
    candidate = saved_model_candidate(path, batch=batch, threads=threads, feeds=feeds)
    return latency({str(path): candidate}, num_runs=num_runs, max_seconds=max_seconds)[str(path)]


def speedup(base: Latency, other: Latency) -> float:
    """How many times faster ``other`` is than ``base``, by medians."""
    return base.median_ms / other.median_ms
