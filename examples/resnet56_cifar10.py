"""ResNet-56 on CIFAR-10: half the latency, at most half a point lost, pruned and in int8.

``python examples/resnet56_cifar10.py train.parquet test.parquet resnet56.safetensors``: Parquet files in the
Hugging Face layout (``image``, ``label``) and the weights of `penjing.models.resnet_cifar.resnet56`.

The weights come from training on the whole training set, so a part of that says nothing about what is lost.
Therefore 2,000 test images choose (they are the validation split), and the other 8,000 are only
reported. The tenth of the training set that `open_data` sets aside is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import penjing as pj
from penjing.data import open_data
from penjing.files import atomic_write

VALIDATION = 2000


def decoded(train: Path, test: Path, out: Path) -> Path:
    """All images as arrays in one ``.npz``, decoded once: ``train``, ``val`` and ``test``."""
    if not out.exists():
        bundle = open_data(train, test=test)
        parts = {"train": bundle.train.load(), "test": bundle.test.load()}
        arrays: dict[str, np.ndarray] = {}
        for part, rows, name in (
            ("train", slice(None), "train"),
            ("test", slice(VALIDATION), "val"),
            ("test", slice(VALIDATION, None), "test"),
        ):
            images, labels = parts[part].images, parts[part].labels
            order = np.random.default_rng(0).permutation(len(labels))[rows]  # the test set is sorted by class
            arrays |= {f"x_{name}": images[order], f"y_{name}": labels[order]}
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as aside, open(aside, "wb") as file:
            np.savez(file, **arrays)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/resnet56"))
    parser.add_argument("--latency", default="0.5x")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-steps", type=int, help="only to try it out")
    parser.add_argument("--trials", type=int, default=1, help="sizes tried until the loss holds")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    data = decoded(args.train, args.test, args.out.with_name(args.out.name + "-data") / "cifar10.npz")
    result = pj.compress(
        "penjing:resnet56",
        str(data),
        budget=pj.Budget(latency=args.latency, batch=1, threads=1),
        max_drop="0.5pt",
        trials=args.trials,
        recover=pj.RecoverConfig(epochs=args.epochs, lr=0.007, max_steps=args.max_steps),
        formats=("onnx",),
        out=args.out,
        resume=args.resume,
        options={
            "model": {"weights": str(args.weights), "options": {"image_size": 32}},
            "data": {
                "options": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
                "normalize": "mean_std",
                "augment": "photos",
            },
        },
        listen=lambda event: print(event.stage, event.message, flush=True) if event.kind == "note" else None,
    )
    print(result.headline)
    print("held" if result.held else "did not hold", "at the budget" if result.met else "")


if __name__ == "__main__":
    main()
