"""Seconds of single operators in ONNX Runtime: measured once for a machine, then looked up.

The runtime's own profiler gives the time inside the operator's kernel, so the reordering that surrounds a
lone convolution, and the call from Python, are not counted to it. Operators are timed in turns, in groups
small enough that all their sessions fit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import MeasureError
from penjing.events import Event, Listener, silent
from penjing.measure.latency import device_name
from penjing.measure.latency_cache import TimingCache
from penjing.measure.latency_ops import COMPUTE, OpShape, op_model

_TOGETHER = 32  # sessions timed in turns
_WARMUP = 3


class OpTimings:
    """A lookup table that measures what it does not know yet.

    Args:
        threads: Threads of the runtime.
        runs: Timed runs of each operator.
        cache: Where timings are kept; by default the user's cache folder.
        listen: Hears progress.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        runs: int = 21,
        cache: TimingCache | None = None,
        listen: Listener = silent,
    ) -> None:
        import onnxruntime

        self.threads, self.runs, self.listen = threads, runs, listen
        self.cache = cache or TimingCache(
            {
                "device": device_name(),
                "runtime": f"onnxruntime {onnxruntime.__version__}",
                "threads": threads,
                "what": "operators",
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
            self.cache.update(dict(zip((s.key for s in part), self._time(part), strict=True)))
        found = {shape: self.cache.get(shape.key) for shape in wanted}
        return {shape: value for shape, value in found.items() if value is not None}

    def _time(self, shapes: Sequence[OpShape]) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="penjing-ops-") as folder:
            sessions = [self._session(s, Path(folder) / str(i)) for i, s in enumerate(shapes)]
            feeds = [_feeds(session) for session in sessions]
            for turn in range(_WARMUP + self.runs):
                order = range(len(sessions))
                first = turn % max(1, len(sessions))
                for at in (*order[first:], *order[:first]):
                    sessions[at].run(None, feeds[at])
            return [_kernel_seconds(Path(s.end_profiling()), _WARMUP) for s in sessions]

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
    """Mean of the second fifth of the kernel times: finer than the profiler's whole microseconds, and free of
    the runs that other work has interrupted.
    """
    events = json.loads(profile.read_text(encoding="utf-8"))
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
    ordered = np.sort(np.asarray(times[skip:]))
    fifth = len(ordered) // 5
    return float(ordered[fifth : 2 * fifth + 1].mean()) * 1e-6
