"""Seconds of single operators in ONNX Runtime: measured once for a machine, then looked up.

The runtime's own profiler gives the time inside the operator's kernel, so the reordering that surrounds a
lone convolution, and the call from Python, are not counted to it. Operators are timed in turns, in groups
small enough that all their sessions fit, and a few fixed operators are timed with every group: what they took
then against what they took the first time is how fast the machine's clock was, and that is divided out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import MeasureError
from penjing.events import Event, Listener, silent
from penjing.files import read_json, temporary
from penjing.measure.latency import device_name
from penjing.measure.latency_cache import TimingCache
from penjing.measure.latency_ops import COMPUTE, OpShape, op_model

_TOGETHER = 32  # sessions timed in turns
_WARMUP = 3
_REPEATS = 3  # in a turn: in a network, too, the operator before leaves data and code in the caches
_FEWEST, _RUNS = 21, 150
_SECONDS = 1.0  # of a group's turns at least: a neighbour's burst of work is over by then
_MOST = 8  # times that, after which the fewest runs are enough
_LOW, _HIGH = 0.02, 0.1  # quantiles of a kernel's times between which the mean is taken


def _plain_conv(channels: int, pixels: int) -> OpShape:
    options = {
        "dilations": (1, 1),
        "group": (1,),
        "kernel_shape": (3, 3),
        "pads": (1,) * 4,
        "strides": (1, 1),
    }
    shape = (1, channels, pixels, pixels)
    return OpShape("conv", shape, (channels, channels, 3, 3), tuple(options.items()))


_CLOCK = (_plain_conv(16, 32), _plain_conv(32, 16), _plain_conv(64, 8))
"""Operators timed with every group."""
_CLOCK_KEY = "clock"


class OpTimings:
    """A lookup table that measures what it does not know yet.

    Args:
        threads: Threads of the runtime.
        runs: Timed runs of each operator (large ones are content with 21).
        least: Seconds that a group of operators is timed at least; after eight times that no run is added.
        cache: Where timings are kept; by default the user's cache folder.
        listen: Hears progress.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        runs: int = _RUNS,
        least: float = _SECONDS,
        cache: TimingCache | None = None,
        listen: Listener = silent,
    ) -> None:
        import onnxruntime

        self.threads, self.runs, self.least, self.listen = threads, runs, least, listen
        self.cache = cache or TimingCache(
            {
                "device": device_name(),
                "runtime": f"onnxruntime {onnxruntime.__version__}",
                "threads": threads,
                "what": f"operators, by the clock of one, quantiles {_LOW} to {_HIGH}",
            }
        )

    def seconds(self, shapes: Iterable[OpShape]) -> dict[OpShape, float]:
        """Seconds of one call of each operator; the unknown ones are measured in turns and remembered.

        Raises:
            MeasureError: naming the operator that the runtime refuses.
        """
        wanted = list(dict.fromkeys(shapes))
        missing = [shape for shape in wanted if self.cache.get(shape.key) is None]
        for start in range(0, len(missing), _TOGETHER):
            part = missing[start : start + _TOGETHER]
            if len(missing) > _TOGETHER:
                event = Event("measure", "progress", start, len(missing), "operator")
                self.listen(event)
            times = self._time([*_CLOCK, *part])
            clock = sum(times[: len(_CLOCK)])
            first = self.cache.get(_CLOCK_KEY) or clock
            named = zip((s.key for s in part), times[len(_CLOCK) :], strict=True)
            self.cache.update({_CLOCK_KEY: first, **{key: value * first / clock for key, value in named}})
        self.cache.tell(self.listen)
        found = {shape: self.cache.get(shape.key) for shape in wanted}
        return {shape: value for shape, value in found.items() if value is not None}

    def _time(self, shapes: Sequence[OpShape]) -> list[float]:
        with temporary() as folder:
            sessions = [self._session(s, folder / str(i)) for i, s in enumerate(shapes)]
            feeds = [_feeds(session) for session in sessions]
            spent: list[list[float]] = [[] for _ in sessions]
            started, turn = time.perf_counter(), 0
            while self._goes_on(turn * _REPEATS - _WARMUP, time.perf_counter() - started):
                first = turn % len(sessions)
                for at in (*range(first, len(sessions)), *range(first)):
                    for _ in range(_REPEATS):
                        before = time.process_time()
                        sessions[at].run(None, feeds[at])
                        spent[at].append(time.process_time() - before)
                turn += 1
            kernels = [_kernel_seconds(Path(s.end_profiling()), _WARMUP) for s in sessions]
            # On a crowded machine a long kernel is always interrupted, but not by the processor's account.
            return [min(kernel, _low(run)) for kernel, run in zip(kernels, spent, strict=True)]

    def _goes_on(self, runs: int, seconds: float) -> bool:
        """Whether another turn is needed after so many timed runs of each operator."""
        if seconds < self.least or runs < min(_FEWEST, self.runs):
            return True
        return runs < self.runs and seconds < _MOST * self.least

    def _session(self, shape: OpShape, prefix: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            model = op_model(shape).SerializeToString()
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise MeasureError(
                f"ONNX Runtime does not time this operator ({error})",
                layer=shape.key,
                remedy="Please report it; a budget in MACs needs no timing",
            ) from error


def _feeds(session: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {e.name: rng.standard_normal(e.shape).astype(np.float32) for e in session.get_inputs()}


def _kernel_seconds(profile: Path, skip: int) -> float:
    """Mean of the low kernel times: finer than the profiler's whole microseconds, and free of the runs that
    other work has interrupted or slowed down.
    """
    events = read_json(profile)
    times = [
        float(event["dur"])
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and event.get("args", {}).get("op_name") in COMPUTE
    ]
    if len(times) <= skip:
        raise MeasureError(
            "the profile of an operator holds no kernel of it",
            layer=str(profile.name),
            remedy="Please report your ONNX Runtime version; a budget in MACs needs no timing",
        )
    return _low(times[skip:]) * 1e-6


def _low(times: Sequence[float]) -> float:
    ordered = np.sort(np.asarray(times))
    low, high = int(_LOW * len(ordered)), int(_HIGH * len(ordered)) + 1
    return float(ordered[low:high].mean())
