"""Does int8 pay on this machine? Both networks timed in turn, in the runtime that serves them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from penjing.export.inputs import num_samples
from penjing.quantize.feeds import Feed
from penjing.quantize.result import Timing
from penjing.quantize.runtime import Session


def time_against_fp32(
    fp32: Path | str, int8: Path | str, feed: Feed, *, threads: int = 1, seconds: float = 2.0
) -> Timing:
    """Median time per call of two ONNX files on the same input, measured in alternation.

    Alternating makes a busy neighbour slow both alike.

    Args:
        fp32: The float file.
        int8: The quantized file.
        feed: One batch, by input name.
        threads: Threads inside an op.
        seconds: Time to spend, about; at least 5 calls each are made.
    """
    sessions = (Session(fp32, threads=threads, arena=True), Session(int8, threads=threads, arena=True))
    for session in sessions:
        session.run(feed)
    taken: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(taken[0]) < 5 or time.perf_counter() < end:
        for session, times in zip(sessions, taken, strict=True):
            start = time.perf_counter()
            session.run(feed)
            times.append(time.perf_counter() - start)
    fp32_ms, int8_ms = (float(np.median(times)) * 1e3 for times in taken)
    batch = num_samples(feed)
    return Timing(fp32_ms, int8_ms, fp32_ms / int8_ms, batch, threads, f"onnxruntime {ort.__version__}")
