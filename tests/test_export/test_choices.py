"""What is said of a file that differs: the op where it begins, and whether an op chose among equals."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from penjing.errors import VerifyError
from penjing.export.onnx import export_onnx
from penjing.export.verify import verify


class Queries(nn.Module):
    """Takes the places with the best scores, as two-stage detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.score = nn.Linear(6, 5), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x [N, L, 6]`` → ``[N, 4, 5]``."""
        best = self.score(x).squeeze(-1).topk(4, dim=1).indices
        value: Tensor = self.value(x)
        return value.gather(1, best.unsqueeze(-1).expand(-1, -1, 5))


class Renumbered(nn.Module):
    """Its activations are taken apart for ONNX, so that the sums behind them are counted anew."""

    scale: Tensor
    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.register_buffer("variance", torch.rand(8) + 0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``x [N, 8]`` → ``[N, 3]``."""
        for _ in range(3):
            scale = self.scale * (self.variance + 1e-5).rsqrt()
            x = torch.nn.functional.softplus(x * scale + self.variance) + x
        return torch.nn.functional.logsigmoid(self.head(x))


def _broken(path: Path, weight: str) -> None:
    """Write other numbers into a weight of a file."""
    model = onnx.load(str(path))
    (stored,) = (i for i in model.graph.initializer if i.name == weight)
    array = onnx.numpy_helper.to_array(stored)
    stored.CopyFrom(onnx.numpy_helper.from_array(array + 1, stored.name))
    onnx.save(model, str(path))


def _message(path: Path, model: nn.Module, x: Tensor) -> str:
    with pytest.raises(VerifyError) as told:
        verify(path, model, (x,))
    return str(told.value)


def test_ties_are_said_to_decide_what_is_chosen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Queries().eval()
    with torch.no_grad():
        model.score.weight.zero_()
    x = torch.randn(2, 300, 6)
    message = _message(export_onnx(model, tmp_path / "ties.onnx", (x,)), model, x)
    assert "behind TopK" in message
    assert "two are equal: rounding decides" in message


def test_a_wrong_weight_is_not_laid_on_the_choice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Queries().eval()
    x = torch.randn(2, 9, 6)
    path = export_onnx(model, tmp_path / "wrong.onnx", (x,))
    _broken(path, "value.bias")
    assert "rounding" not in _message(path, model, x)


def test_values_that_are_called_otherwise_are_not_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Renumbered().eval()
    x = torch.randn(2, 8)
    path = export_onnx(model, tmp_path / "numbered.onnx", (x,))
    verify(path, model, (x,))
    _broken(path, "head.bias")
    message = _message(path, model, x)
    assert "the first op that differs is Gemm 'linear' of layer 'head'." in message
