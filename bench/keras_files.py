"""Speed of the ONNX files of Keras networks, ours in fp32 and int8 beside Keras's own export.

    python bench/keras_files.py --networks MobileNetV2 ResNet50V2 --side 96

Networks of `keras.applications` without trained weights, whose batch norms have seen data: only time, and how
near the files are to each other, is measured. Files take turns; processor time of one thread, a low quantile.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from penjing.export import export
from penjing.measure.latency import latency, onnx_candidate
from penjing.models.spec import load_model
from penjing.quantize import quantize

_WIDTHS = {"MobileNetV2": {"alpha": 0.35}}


def network(name: str, side: int) -> Any:
    """An untrained network whose norms are those of a trained one: none is the identity."""
    import keras

    keras.utils.set_random_seed(0)
    made = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classes=10, **_WIDTHS.get(name, {})
    )
    rng = np.random.default_rng(0)
    for layer in made._flatten_layers():
        if type(layer).__name__ == "BatchNormalization":
            shapes = [weight.shape for weight in layer.get_weights()]
            low = (0.8, -0.2, -0.2, 0.8)  # γ, β, mean, variance
            layer.set_weights([rng.uniform(at, at + 0.4, size) for at, size in zip(low, shapes, strict=True)])
    return made


def answers(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What a file makes of images."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["MobileNetV2", "EfficientNetV2B0", "ResNet50V2"])
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    images = [rng.random((16, args.side, args.side, 3), np.float32) for _ in range(4)]
    print("network            batch  fp32 / Keras's export  int8 / ours in fp32  difference  int8 dB")
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            own, source = Path(folder, "keras.onnx"), Path(folder, "model.keras")
            made = network(name, args.side)
            made(images[0][:2])  # its export asks for a call before
            made.save(source)
            made.export(own, format="onnx", verbose=False)
            model = load_model(str(source)).model.eval()
            example = torch.from_numpy(images[0][:2])
            ours = export(model, folder, ("onnx",), example_inputs=example)["onnx"].path
            int8 = quantize(ours, [torch.from_numpy(x) for x in images], out=Path(folder, "int8.onnx"))
            found, wanted = answers(ours)(images[0]), answers(own)(images[0])
            apart = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            for batch in args.batches:
                files = {"keras": own, "ours": ours, "int8": int8.path}
                timed = latency({key: onnx_candidate(path, batch=batch) for key, path in files.items()})
                keras_ms, ours_ms, int8_ms = (timed[key].quiet_ms for key in files)
                print(
                    f"{name:18} {batch:5}  {keras_ms / ours_ms:20.2f}×  {ours_ms / int8_ms:17.2f}×  "
                    f"{apart:10.1e}  {int8.sqnr_db:7.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
