"""Ops that torch's exporter or LiteRT lacks give torch's values in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.export import export_onnx, verify

Function = Callable[[Tensor], Tensor]
BOUNDS = torch.tensor([-1.0, 0.0, 1.0])

OPS: dict[str, Function] = {
    "kthvalue": lambda x: torch.kthvalue(x, 3, -1)[0],
    "kthvalue, place": lambda x: torch.kthvalue(x, 2, 1, keepdim=True)[1],
    "median": lambda x: torch.median(x, -1)[0],
    "median of five, kept": lambda x: torch.median(x, 1, keepdim=True)[0],
    "cummax": lambda x: torch.cummax(x, 1)[0],
    "cummax, places with ties": lambda x: torch.cummax(x.round(), 1)[1],
    "cummin": lambda x: torch.cummin(x, -1)[0],
    "cummin, places with ties": lambda x: torch.cummin(x.round(), -1)[1],
    "cumprod": lambda x: torch.cumprod(x, 1),
    "searchsorted": lambda x: torch.searchsorted(BOUNDS, x.round()),
    "searchsorted, right": lambda x: torch.searchsorted(BOUNDS, x.round(), right=True),
    "searchsorted, each its own": lambda x: torch.searchsorted(x.sort(-1)[0].contiguous(), x),
    "bucketize": lambda x: torch.bucketize(x.round(), BOUNDS, right=True),
    "scatter_reduce, mean": lambda x: (2 * x).scatter_reduce(1, (x > 0).long() + 2 * (x > 1), x, "mean"),
    "scatter_reduce, mean of the rest": lambda x: (2 * x).scatter_reduce(
        1, (x > 0).long() + 2 * (x > 1), x, "mean", include_self=False
    ),
    "hstack": lambda x: torch.hstack([x, 2 * x]),
    "dstack": lambda x: torch.dstack([x[:, 0], x[:, 1]]),
    "vstack": lambda x: torch.vstack([x.amax((0, 1)), x.amin((0, 1))]),
    "rrelu": F.rrelu,
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 3),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (2, 5)),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x[:, None, None], (1, 4, 3)),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x[:, None, None], (1, 4, 3)),
    "hypot": lambda x: torch.hypot(x, x + 1),
    "copysign": lambda x: torch.copysign(x + 1, -x),
    "fmax": lambda x: torch.fmax(x, (-x).sqrt()),
    "fmin": lambda x: torch.fmin((-x).sqrt(), x),
}

ELEMENTARY: dict[str, Function] = {
    "acos": lambda x: torch.acos(torch.tanh(3 * x)),
    "acosh": lambda x: torch.acosh(1 + x.abs()),
    "asin": lambda x: torch.asin(torch.tanh(3 * x)),
    "asinh": lambda x: torch.asinh(20 * x),
    "atan": lambda x: torch.atan(20 * x),
    "atan2": lambda x: torch.atan2(x, x + 1),
    "atanh": lambda x: torch.atanh(0.99 * torch.tanh(x)),
    "cosh": torch.cosh,
    "erf": lambda x: torch.erf(3 * x),
    "erfc": torch.erfc,
    "angle": lambda x: torch.angle(torch.complex(x[..., :4], x[..., 4:])),
    "fmod": lambda x: torch.fmod(3 * x, -0.7),
    "fmod of integers": lambda x: torch.fmod((10 * x).int(), 3),
    "quotient of integers": lambda x: torch.div((10 * x).int(), 3, rounding_mode="trunc"),
    "sinh": torch.sinh,
    "tan": torch.tan,
}


class Net(nn.Module):
    """Some functions of a layer's outputs ``[N, 5, 8]``."""

    def __init__(self, functions: dict[str, Function]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.functions = nn.Linear(6, 8), functions

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer(x)
        return [function(x) for function in self.functions.values()]


X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OPS)
def test_in_onnx(name: str, tmp_path: Path) -> None:
    model = Net({name: OPS[name]}).eval()
    found = verify(export_onnx(model, tmp_path / "m.onnx", X), model, X)
    assert found.relative < 1e-5
    assert [row.batch for row in found.rows] == [1, 3, 8]


@pytest.mark.parametrize("functions", [OPS, ELEMENTARY], ids=["torch lacks", "LiteRT lacks"])
def test_in_all_formats(functions: dict[str, Function], tmp_path: Path) -> None:
    formats = ("onnx", "saved_model", "litert")
    made = pj.export(Net(functions).eval(), tmp_path / "out", formats=formats, example_inputs=X)
    for file in made.files:
        assert file.verification.relative < 3e-5  # runtimes approximate these, by processor
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]


def test_what_runs_along_a_free_dimension_is_told(tmp_path: Path) -> None:
    with pytest.raises(pj.PenjingError, match="free size"):
        export_onnx(Net({"": lambda x: torch.cummax(x, 0)[0]}).eval(), tmp_path / "m.onnx", X)
