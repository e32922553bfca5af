"""Int8 side by side: penjing.quantize and onnxruntime.quantization on CIFAR-10 ResNets with real weights.

Each method runs in a process of its own, so that its time and peak memory are its own. Calibration images
come from the training set; accuracy is over the test set, which chooses nothing.

    python bench/quantize.py --data ../shared/data --depth 20 --calibration 512 --test 10000
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as parquet
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from penjing.export.onnx import export_onnx
from penjing.quantize import QuantizeConfig, quantize, time_against_fp32

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


class _Block(nn.Module):
    """Two 3×3 convolutions and a parameter-free shortcut (option A)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, (width - width_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.added:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of He et al. 2016, section 4.2; ``depth`` is 6n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width_in = 16
        for stage, width in enumerate((16, 32, 64)):
            blocks = []
            for index in range((depth - 2) // 6):
                blocks.append(_Block(width_in, width, 2 if stage and not index else 1))
                width_in = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``NK`` of images ``NCHW``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            x = getattr(self, f"layer{stage + 1}")(x)
        out: torch.Tensor = self.linear(x.mean(dim=(2, 3)))
        return out


def images(path: Path, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first ``count`` images of a Hugging Face parquet file, normalised, and their labels."""
    rows: list[dict[str, Any]] = []
    for batch in parquet.ParquetFile(path).iter_batches(min(count, 1000)):
        rows += batch.to_pylist()
        if len(rows) >= count:
            break
    decoded = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows[:count]]
    x_NHWC = np.stack([np.asarray(image, np.float32) for image in decoded]) / 255.0
    x_NCHW = (x_NHWC.transpose(0, 3, 1, 2) - _MEAN) / _STD
    return np.ascontiguousarray(x_NCHW, np.float32), np.array(
        [row["label"] for row in rows[:count]], np.int64
    )


def ours(fp32: Path, out: Path, calibration: Path, **options: Any) -> None:
    """Penjing's quantize, without its own timing at the end."""
    x = np.load(calibration)
    batches = [x[i : i + 64] for i in range(0, len(x), 64)]
    quantize(fp32, batches, QuantizeConfig(**options), out=out, time_it=False)


def peer(fp32: Path, out: Path, calibration: Path, method: str) -> None:
    """ONNX Runtime's static quantization, in its best form here: u8 activations, s8 per-channel weights."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    x = np.load(calibration)
    name = ort.InferenceSession(str(fp32)).get_inputs()[0].name

    class Reader(q.CalibrationDataReader):  # type: ignore[misc] # untyped base
        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter([{name: x[i : i + 64]} for i in range(0, len(x), 64)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared = out.with_name("prepared.onnx")
    quant_pre_process(str(fp32), str(prepared))
    q.quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # without it, 16-bit sums saturate on CPUs before VNNI
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        calibrate_method=getattr(q.CalibrationMethod, method),
    )


METHODS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "penjing (default)": (ours, {}),
    "penjing (second order)": (ours, {"rounding": "second_order"}),
    "penjing (min_max, absmax)": (
        ours,
        {"observer": "min_max", "weights": "absmax", "equalize": False, "bias_correction": False},
    ),
    "penjing (7-bit weights)": (ours, {"reduce_range": "full"}),
    "onnxruntime MinMax": (peer, {"method": "MinMax"}),
    "onnxruntime Percentile": (peer, {"method": "Percentile"}),
    "onnxruntime Entropy": (peer, {"method": "Entropy"}),
}


def _worker(name: str, fp32: Path, out: Path, calibration: Path, answers: Any) -> None:
    method, options = METHODS[name]
    base = _peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    method(fp32, out, calibration, **options)
    peak = _peak_mb()
    answers.put((time.perf_counter() - start, time.process_time() - cpu, peak, peak - base))


def _peak_mb() -> float:
    """This process's own peak resident memory (``ru_maxrss`` starts at the parent's)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def outputs(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of an ONNX file."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + 250]})[0] for i in range(0, len(x), 250)])


def compare(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per method."""
    model = CifarResNet(args.depth)
    model.load_state_dict(load_file(args.data / f"resnet{args.depth}-cifar10.safetensors"))
    fp32 = export_onnx(model.eval(), folder / "fp32.onnx", torch.zeros(2, 3, 32, 32))
    calibration = folder / "calibration.npy"
    np.save(calibration, images(args.data / "cifar10-train.parquet", args.calibration)[0])
    x, y = images(args.data / "cifar10-test.parquet", args.test)
    wanted = outputs(fp32, x)
    reference = float((wanted.argmax(1) == y).mean() * 100)
    context = multiprocessing.get_context("spawn")
    for name in METHODS:
        if args.only and args.only not in name:
            continue
        out = folder / "int8.onnx"
        answers = context.Queue()
        process = context.Process(target=_worker, args=(name, fp32, out, calibration, answers))
        process.start()
        process.join()
        if process.exitcode:
            yield {"method": name, "failed": process.exitcode}
            continue
        seconds, cpu, peak, grown = answers.get()
        found = outputs(out, x)
        accuracy = float((found.argmax(1) == y).mean() * 100)
        noise = np.square(found.astype(np.float64) - wanted).sum()
        timing = time_against_fp32(fp32, out, {_input(out): x[:1]}, threads=1, seconds=args.seconds)
        yield {
            "method": name,
            "fp32_top1": round(reference, 2),
            "top1": round(accuracy, 2),
            "drop": round(reference - accuracy, 2),
            "agree": round(float((found.argmax(1) == wanted.argmax(1)).mean() * 100), 2),
            "sqnr_db": round(float(10 * np.log10(np.square(wanted, dtype=np.float64).sum() / noise)), 2),
            "speedup": round(timing.speedup, 2),
            "kilobytes": round(out.stat().st_size / 1024),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "peak_mb": round(peak),
            "grown_mb": round(grown),
        }


def _input(path: Path) -> str:
    return str(ort.InferenceSession(str(path)).get_inputs()[0].name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--depth", type=int, default=20, choices=(20, 56))
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each latency")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    args = parser.parse_args()
    if not (args.data / f"resnet{args.depth}-cifar10.safetensors").exists():
        sys.exit(f"no data in {args.data}: give --data")
    print(f"onnxruntime {ort.__version__}, torch {torch.__version__}, {args.test} test images")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(args, Path(folder)):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
