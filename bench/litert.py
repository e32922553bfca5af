"""LiteRT files of a trained network, in every precision: accuracy, and agreement with fp32, on CIFAR-10.

    python bench/litert.py ../shared/data --depth 20

The first 256 training images calibrate; nothing is chosen on the test images, which each file sees once.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image

import penjing.export as pe
from penjing.models import build
from penjing.models.weights import load_weights

FORMATS = ("litert", "litert_fp16", "litert_dynamic", "litert_int8")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Print a line for every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data", type=Path, help="folder with cifar10-*.parquet and resnet*-cifar10.safetensors"
    )
    parser.add_argument("--depth", type=int, default=20, choices=(20, 56))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build(f"resnet{options.depth}", num_classes=10).eval()
    load_weights(model, options.data / f"resnet{options.depth}-cifar10.safetensors")
    images, _ = read(options.data / "cifar10-train.parquet", 256)
    x, y = read(options.data / "cifar10-test.parquet", None)
    with tempfile.TemporaryDirectory() as folder:
        source = pe.export_onnx(model, Path(folder) / "model.onnx", images[:2])
        reference = answers(pe.OnnxRunner(source, threads=1), x)
        print(f"onnx fp32: {100 * np.mean(reference == y):.2f}%, {source.stat().st_size:,} bytes")
        for name in FORMATS:
            batches = [torch.from_numpy(images[i : i + 32]) for i in range(0, len(images), 32)]
            file = pe.export(source, folder, [name], data=batches, batch_sizes=(1,))[name]
            found = answers(pe.open_file(file.path), x)
            right, same = np.mean(found == y), np.mean(found == reference)
            told = f"{file.size_bytes:,} bytes, {file.seconds:.1f} s"
            print(f"{name}: {100 * right:.2f}%, agrees on {100 * same:.2f}%, {told}", flush=True)


def read(path: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images (count, 3, 32, 32) and labels."""
    table = pyarrow.parquet.read_table(path).slice(0, count)
    rows = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["image"].to_pylist()]
    x_NHWC = (np.stack([np.asarray(row, np.float32) for row in rows]) / 255 - MEAN) / STD
    return np.ascontiguousarray(x_NHWC.transpose(0, 3, 1, 2), np.float32), table["label"].to_numpy()


def answers(runner: Any, x: np.ndarray) -> np.ndarray:
    """The class that a file gives for each image."""
    name = runner.inputs[0].name
    outputs = [runner.run({name: x[i : i + 100]})[0] for i in range(0, len(x), 100)]
    return np.asarray(np.concatenate(outputs).argmax(1))


if __name__ == "__main__":
    main()
