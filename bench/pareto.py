"""Do pruning and int8 multiply? The networks of a finished `cifar10.py` run, as fp32 and as int8 files.

Every file is timed in turn with the dense fp32 one (ONNX Runtime, one thread) and read once over the whole
test set; calibration images come from the training set.

    python bench/cifar10.py --seeds 0 --networks penjing --recoveries same --out runs/resnet56
    python bench/pareto.py --run runs/resnet56     # pareto.csv and pareto.svg beside its rows
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from cifar10 import Bench, Setting, recovered
from torch import nn

from penjing.export import OnnxRunner, export_onnx
from penjing.files import atomic_write
from penjing.measure import accuracy, count
from penjing.quantize import quantize, time_against_fp32


@dataclass(frozen=True)
class File:
    """One file and what it is worth.

    Attributes:
        network: Name.
        kind: ``"fp32"`` or ``"int8"``.
        accuracy, low, high: Share of the test set that is right, with its 95% interval.
        size: Bytes, as a share of the dense fp32 file.
        faster: Times as fast as the dense fp32 file.
        macs: Multiplications, as a share of the dense network's.
    """

    network: str
    kind: str
    accuracy: float
    low: float
    high: float
    size: float
    faster: float
    macs: float


def networks(bench: Bench) -> Iterator[tuple[str, nn.Module]]:
    """The dense network, then every recovered one of the run."""
    yield "dense", bench.dense
    for path in sorted((bench.setting.out / "rows").glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        network, recovery, seed = row["network"], row["recovery"], row["seed"]
        yield f"{network}, {recovery}, seed {seed}", recovered(bench, network, recovery, seed)


def files(bench: Bench, batch: int, seconds: float) -> Iterator[File]:
    """Both files of every network, measured; ``batch`` images at a time are timed."""
    test = list(bench.test())
    calibrate = torch.split(torch.cat(bench.calibration()), 32)
    example = torch.zeros(2, *test[0][0].shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        for index, (name, model) in enumerate(networks(bench)):
            fp32 = export_onnx(model, dense if not index else Path(folder) / f"{index}.onnx", example)
            int8 = fp32.with_suffix(".int8.onnx")
            quantize(fp32, calibrate, out=int8, time_it=False)
            macs = count(model, example).num_macs / bench.macs
            for kind, file in (("fp32", fp32), ("int8", int8)):
                runner = OnnxRunner(file)
                found = accuracy(runner, test)
                feed = {runner.inputs[0].name: test[0][0][:batch].numpy()}
                timed = time_against_fp32(dense, file, feed, threads=1, seconds=seconds)
                size = file.stat().st_size / dense.stat().st_size
                yield File(name, kind, found.value, found.low, found.high, size, timed.speedup, macs)


def plot(found: list[File], batch: int, path: Path) -> None:
    """Accuracy against speed; the area of a mark is the size of its file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for kind, colour in (("fp32", "#8a8a8a"), ("int8", "#2a7f62")):
        some = [one for one in found if one.kind == kind]
        accuracies = [100 * one.accuracy for one in some]
        spread = np.array([[100 * (o.accuracy - o.low), 100 * (o.high - o.accuracy)] for o in some]).T
        speeds = [one.faster for one in some]
        axes.errorbar(speeds, accuracies, yerr=spread, fmt="none", ecolor=colour, alpha=0.5)
        axes.scatter(speeds, accuracies, [60 + 600 * one.size for one in some], colour, label=kind, alpha=0.8)
        for one in some:
            axes.annotate(
                f"{one.network}\n{100 * one.size:.0f}% of the bytes",
                (one.faster, 100 * one.accuracy),
                (0, 12),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axes.margins(0.18)
    axes.set_xlabel(f"times as fast as the dense fp32 file (batch {batch}, one thread)")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="svg")
    pyplot.close(figure)


def main() -> None:
    """Measure every file of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--run", type=Path, default=Path("runs/cifar10"), help="folder of a cifar10.py run")
    parser.add_argument("--calibration", type=int, default=512, help="training images for int8")
    parser.add_argument(
        "--batch", type=int, default=1, help="images at a time when a file is timed, up to 250"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="spent on timing each file")
    args = parser.parse_args()
    stamp = args.run / "setting.json"
    if not stamp.exists():
        sys.exit(f"{args.run} holds no run of cifar10.py: give --run")
    setting = json.loads(stamp.read_text(encoding="utf-8"))
    depth, speedup, epochs = int(setting["depth"]), float(setting["speedup"]), int(setting["epochs"])
    batch_size = int(setting["batch_size"])
    bench = Bench(
        Setting(args.data, args.run, depth, speedup, epochs, batch_size, args.calibration, None, None, None)
    )
    found = []
    print(f"{'':44}{'':6}{'test':>7}{'size':>8}{'faster':>9}{'MACs':>7}")
    for one in files(bench, args.batch, args.seconds):
        found.append(one)
        print(
            f"{one.network:44}{one.kind:6}{100 * one.accuracy:6.2f}%{one.size:7.3f}×{one.faster:8.2f}×"
            f"{one.macs:7.3f}",
            flush=True,
        )
    with (
        atomic_write(args.run / "pareto.csv") as aside,
        open(aside, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(asdict(found[0])))
        writer.writeheader()
        writer.writerows(asdict(one) for one in found)
    plot(found, args.batch, args.run / "pareto.svg")


if __name__ == "__main__":
    main()
