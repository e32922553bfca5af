"""Graphs written by hand, each with what a real one may hold and few do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import graph_file, weights
from numpy.typing import NDArray
from onnx import helper
from safetensors.numpy import save_file

from penjing.errors import QuantizeError
from penjing.quantize import QuantizeConfig, quantize

IMAGES: list[int | str] = ["n", 3, 8, 8]
NEAREST = QuantizeConfig(rounding="nearest", observer="min_max")


def two_convs(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], pads=[1] * 4),
    ]
    return graph_file(
        path, nodes, {"w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(4, 8, 3, 3)}, {"x": IMAGES}
    )


def data(count: int = 8) -> list[NDArray[np.float32]]:
    return [weights(count, 3, 8, 8, seed=7)]


def test_no_file_of_the_users_is_replaced(tmp_path: Path) -> None:
    source = two_convs(tmp_path / "m.onnx")
    save_file({"w": weights(2)}, tmp_path / "mine.safetensors")
    held = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "folder").mkdir()
    for name in ("m.onnx", "folder/../m.onnx", "mine.onnx", "new.safetensors"):
        with pytest.raises(QuantizeError, match=r"replace|take this name"):
            quantize(source, data(), NEAREST, out=tmp_path / name, time_it=False)
    assert {path: path.read_bytes() for path in held} == held
    for _ in range(2):  # its own files it may replace
        quantize(source, data(), NEAREST, out=tmp_path / "q.onnx", time_it=False)
