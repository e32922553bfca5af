"""ResNet-56 on CIFAR-10: half the latency, at most half a point lost.

``python examples/resnet56_cifar10.py train.parquet test.parquet resnet56.safetensors``: Parquet files in the
Hugging Face layout (``image``, ``label``) and the weights of `penjing.models.resnet_cifar.resnet56`.
"""

from __future__ import annotations

import sys

import penjing as pj


def main(train: str, test: str, weights: str, out: str = "runs/resnet56") -> None:
    result = pj.compress(
        "penjing:resnet56",
        train,
        budget=pj.Budget(latency="0.5x", batch=1, threads=1),
        max_drop="0.5pt",
        recover=pj.RecoverConfig(epochs=20, lr=0.02),
        formats=("onnx",),
        out=out,
        options={
            "model": {"weights": weights, "options": {"num_classes": 10, "in_channels": 3, "image_size": 32}},
            "data": {
                "options": {"test": test, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
                "normalize": "mean_std",
                "augment": "photos",
            },
        },
    )
    print(result.headline)
    print("held" if result.held else "did not hold", "at the budget" if result.met else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
