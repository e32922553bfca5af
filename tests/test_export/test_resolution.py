"""A sigmoid's tiny outputs are compared to the runtime's digits, everything else relatively."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import penjing.export as pe
from penjing.errors import VerifyError
from penjing.export.resolution import sigmoid_outputs

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Head(nn.Module):
    """Two outputs of about 4e-5: probabilities (moved about), and logits that are no probabilities."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        return {"probability": torch.sigmoid(y - 10).reshape(-1, 2, 2), "logit": y * 4e-5}


def _shifted(path: Path, name: str, by: float) -> None:
    """Add a constant to an output of the file."""
    model = onnx.load(str(path))
    for node in model.graph.node:
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = "before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(by, np.float32), "by"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "by"], [name]))
    onnx.save(model, str(path))


def test_only_what_a_sigmoid_reaches_has_absolute_digits(tmp_path: Path) -> None:
    path = pe.export_onnx(Head(), tmp_path / "m.onnx", X)
    assert sigmoid_outputs(path) == {"probability"}
    assert pe.verify(path, Head(), X).ok


def test_a_small_shift_of_small_outputs_is_seen_unless_they_are_a_sigmoids(tmp_path: Path) -> None:
    """1e-7 is 0.2% of these outputs: nothing to a sigmoid in this runtime, an error elsewhere."""
    path = pe.export_onnx(Head(), tmp_path / "logit.onnx", X)
    _shifted(path, "logit", 1e-7)
    with pytest.raises(VerifyError, match="relative difference"):
        pe.verify(path, Head(), X)


def test_a_sigmoid_far_off_is_seen(tmp_path: Path) -> None:
    class Far(Head):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: value + 1e-6 for name, value in super().forward(x).items()}

    path = pe.export_onnx(Head(), tmp_path / "far.onnx", X)
    with pytest.raises(VerifyError):
        pe.verify(path, Far(), X)
