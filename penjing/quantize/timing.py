"""Does int8 pay on this machine? Both networks timed in turn, in the runtime that serves them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from penjing.export.inputs import num_samples
from penjing.measure.latency import latency
from penjing.quantize.feeds import Feed
from penjing.quantize.result import Timing
from penjing.quantize.runtime import Session

_MOST_RUNS = 1 << 20


def time_against_fp32(
    fp32: Path | str, int8: Path | str, feed: Feed, *, threads: int = 1, seconds: float = 2.0
) -> Timing:
    """Time per call of two ONNX files on the same input, as if nothing else ran, measured in turns.

    Where other work has the cores, medians by the clock tell of it and not of the files (a network that is
    1.6 times as fast came out at 1.2), so the time is `Latency.quiet_ms`.

    Args:
        fp32: The float file.
        int8: The quantized file.
        feed: One batch, by input name.
        threads: Threads inside an op.
        seconds: Time to spend, about; at least 5 calls each are made.
    """
    first, second = (Session(path, threads=threads, arena=True) for path in (fp32, int8))
    found = latency(
        {"fp32": lambda: first.run(feed), "int8": lambda: second.run(feed)},
        num_runs=_MOST_RUNS,
        num_warmup=1,
        max_seconds=seconds,
    )
    fp32_ms, int8_ms = found["fp32"].quiet_ms, found["int8"].quiet_ms
    batch = num_samples(feed)
    return Timing(fp32_ms, int8_ms, fp32_ms / int8_ms, batch, threads, f"onnxruntime {ort.__version__}")
