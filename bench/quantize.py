"""Int8 side by side: penjing.quantize and onnxruntime.quantization on networks with real weights.

Each method runs in a process of its own, so that its time and peak memory are its own. Evaluation samples
choose nothing; see `quantize_cases` for where samples come from.

    python bench/quantize.py --data ../shared/data --case resnet20 --calibration 512 --evaluation 10000
    python bench/quantize.py --case lite0 minilm        # needs the packages named in quantize_cases.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from quantize_cases import CASES, PACKAGES, Arrays, Asked, Case, batches

from penjing.quantize import QuantizeConfig, quantize, time_against_fp32


def ours(case: Case, out: Path, **options: Any) -> None:
    """Penjing's quantize, without its own timing at the end."""
    quantize(case.fp32, case.calibration, QuantizeConfig(**options), out=out, time_it=False)


def peer(case: Case, out: Path, method: str) -> None:
    """ONNX Runtime's static quantization, in its best form here: u8 activations, s8 per-channel weights."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc] # untyped base
        def __init__(self) -> None:
            self.batches = iter(case.calibration)

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared = out.with_name("prepared.onnx")
    quant_pre_process(str(case.fp32), str(prepared), skip_symbolic_shape=case.transformer)
    q.quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"] if case.transformer else None,
        per_channel=True,
        reduce_range=True,  # without it, 16-bit sums saturate on CPUs before VNNI
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        calibrate_method=getattr(q.CalibrationMethod, method),
    )


def peer_dynamic(case: Case, out: Path) -> None:
    """ONNX Runtime's dynamic quantization: products and LSTMs."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_name("prepared.onnx")
    quant_pre_process(str(case.fp32), str(prepared), skip_symbolic_shape=True)
    q.quantize_dynamic(str(prepared), str(out), per_channel=True, weight_type=q.QuantType.QInt8)


METHODS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "penjing (default)": (ours, {}),
    "penjing (nearest)": (ours, {"rounding": "nearest"}),
    "penjing (4-bit weights, simulated)": (ours, {"weight_bits": 4}),
    "penjing (descent)": (ours, {"rounding": "descent"}),
    "penjing (4-bit weights, descent, simulated)": (ours, {"weight_bits": 4, "rounding": "descent"}),
    "penjing (blocks)": (ours, {"rounding": "blocks"}),
    "penjing (4-bit weights, blocks, simulated)": (ours, {"weight_bits": 4, "rounding": "blocks"}),
    "penjing (4-bit weights, nearest, simulated)": (ours, {"weight_bits": 4, "rounding": "nearest"}),
    "penjing (dynamic)": (ours, {"mode": "dynamic"}),
    "penjing (8-bit weights alone)": (ours, {"mode": "weight_only"}),
    "penjing (4-bit weights alone)": (ours, {"mode": "weight_only", "weight_bits": 4}),
    "penjing (min_max, absmax)": (
        ours,
        {"observer": "min_max", "weights": "absmax", "equalize": False, "bias_correction": False},
    ),
    "penjing (7-bit weights)": (ours, {"reduce_range": "full"}),
    "onnxruntime MinMax": (peer, {"method": "MinMax"}),
    "onnxruntime Percentile": (peer, {"method": "Percentile"}),
    "onnxruntime Entropy": (peer, {"method": "Entropy"}),
    "onnxruntime dynamic": (peer_dynamic, {}),
}


def _worker(name: str, case: Case, out: Path, answers: Any) -> None:
    """A method by itself: calibration is read from its file, evaluation samples stay with the parent."""
    method, options = METHODS[name]
    base = _peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    method(case, out, **options)
    peak = _peak_mb()
    answers.put((time.perf_counter() - start, time.process_time() - cpu, peak, peak - base))


def _peak_mb() -> float:
    """This process's own peak resident memory (``ru_maxrss`` starts at the parent's)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def outputs(path: Path, inputs: Arrays) -> NDArray[np.float32]:
    """First output of an ONNX file."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in batches(inputs, 100)])


def compare(case: Case, out: Path, wanted: NDArray[np.float32], seconds: float) -> dict[str, Any]:
    """What the int8 file at ``out`` is worth against fp32."""
    found = outputs(out, case.evaluation)
    noise = np.square(found.astype(np.float64) - wanted).sum()
    row: dict[str, Any] = {
        "sqnr_db": round(float(10 * np.log10(np.square(wanted, dtype=np.float64).sum() / noise)), 2)
    }
    if case.embeds:
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        row["cosine"] = round(float(((found * wanted).sum(axis=1) / lengths).mean()), 5)
    else:
        row["agree"] = round(float((found.argmax(1) == wanted.argmax(1)).mean() * 100), 2)
    if case.labels is not None:
        top1, fp32 = (float((values.argmax(1) == case.labels).mean() * 100) for values in (found, wanted))
        row |= {"top1": round(top1, 2), "fp32_top1": round(fp32, 2), "drop": round(fp32 - top1, 2)}
    if seconds:
        one = {name: array[:1] for name, array in case.evaluation.items()}
        timing = time_against_fp32(case.fp32, out, one, threads=1, seconds=seconds)
        row |= {"speedup": round(timing.speedup, 2), "int8_ms": round(timing.int8_ms, 3)}
    return row | {"kilobytes": round(out.stat().st_size / 1024), "float_kernels": float_kernels(out)}


def float_kernels(path: Path) -> dict[str, int]:
    """Convolutions and matrix products that ONNX Runtime runs in float, by op."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        counts = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return {
        op: n
        for op, n in counts.items()
        if op in {"Conv", "FusedConv", "Gemm", "FusedGemm", "FusedMatMul", "MatMul"}
    }


def rows(args: argparse.Namespace, name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per method; one alone, with the reason, where the case's package is not installed."""
    if absent := [each for each in PACKAGES.get(name, {}) if importlib.util.find_spec(each) is None]:
        wanted_packages = " ".join(PACKAGES[name][each] for each in absent)
        yield {"case": name, "failed": f"not installed: pip install {wanted_packages}"}
        return
    case = CASES[name](Asked(args.data, args.calibration, args.evaluation), folder)
    wanted = outputs(case.fp32, case.evaluation)
    context = multiprocessing.get_context("spawn")
    for method in METHODS:
        if args.only and not any(part in method for part in args.only):
            continue
        out = folder / "int8.onnx"
        answers = context.Queue()
        process = context.Process(target=_worker, args=(method, replace(case, evaluation={}), out, answers))
        process.start()
        process.join()
        if process.exitcode:
            yield {"case": name, "method": method, "failed": process.exitcode}
            continue
        seconds, cpu, peak, grown = answers.get()
        yield {
            "case": name,
            "method": method,
            **compare(case, out, wanted, args.seconds),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "peak_mb": round(peak),
            "grown_mb": round(grown),
        }


def main() -> int:
    """Print a line for every row; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--case", nargs="+", default=["resnet20", "resnet56"], choices=tuple(CASES))
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--evaluation", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each latency")
    parser.add_argument("--only", nargs="*", help="methods whose name contains one of these")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    args = parser.parse_args()
    if (
        any(name.startswith("resnet") and "random" not in name for name in args.case)
        and not args.data.is_dir()
    ):
        sys.exit(f"no data in {args.data}: give --data")
    print(f"onnxruntime {ort.__version__}, torch {torch.__version__}")
    found = []
    for name in args.case:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(args, name, Path(folder)):
                found.append(row)
                print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any("failed" in row for row in found))


if __name__ == "__main__":
    sys.exit(main())
