from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Residual, batches
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from penjing.export.onnx import export_onnx
from penjing.quantize import QuantizeConfig, quantize
from penjing.quantize.equalize import choose_factors, equalize, find_regions
from penjing.quantize.feeds import Feeds, input_specs
from penjing.quantize.place import place
from penjing.quantize.prepare import load_onnx, prepare
from penjing.quantize.runtime import Session


class Mobile(nn.Module):
    """Residual bottleneck with a depthwise convolution and channels of very different ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.grouped = nn.Conv2d(24, 16, 3, padding=1, groups=4)
        self.project = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)
        spread = torch.logspace(-1.5, 0.0, 24)
        with torch.no_grad():
            for maker in (self.expand, self.depthwise):
                maker.weight *= spread.view(-1, 1, 1, 1)
                assert maker.bias is not None
                maker.bias *= spread
            self.depthwise.weight /= spread.view(-1, 1, 1, 1)
            self.grouped.weight /= spread.view(4, 1, 6, 1, 1).expand(4, 4, 6, 1, 1).reshape(16, 6, 1, 1)
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.depthwise(functional.relu(self.expand(x))))
        x = functional.relu(self.grouped(x))
        x = x + self.project(x)
        out: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Smooth(nn.Module):
    """LayerNorm with a few huge features before two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.a, self.b = nn.Linear(32, 16), nn.Linear(32, 16)
        with torch.no_grad():
            self.norm.weight[:2] = 60.0
            self.a.weight[:, :2] *= 0.05
            self.b.weight[:, :2] *= 0.05

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        out: torch.Tensor = torch.tanh(self.a(y)) * self.b(y)
        return out


class PostNorm(nn.Module):
    """The same features, read by a residual sum too: no constant can take a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 96), nn.Linear(96, 32)
        with torch.no_grad():
            self.norm.weight[:2] = 60.0
            self.up.weight[:, :2] *= 0.02

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        out: torch.Tensor = y / 60.0 + self.down(functional.gelu(self.up(y)))
        return out


def file_of(model: nn.Module, folder: Path, shape: tuple[int, ...]) -> Path:
    return export_onnx(model.eval(), folder / "fp32.onnx", torch.zeros(2, *shape))


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Mobile, (3, 12, 12)), (Residual, (3, 16, 16)), (Smooth, (7, 32)), (PostNorm, (7, 32))],
)
def test_equalizing_keeps_the_function(make: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepare(load_onnx(file_of(make(), tmp_path, shape)))
    data = batches(2, 16, shape)
    before = Session(model).run({model.graph.inputs[0].name or "": data[0]})
    feeds = Feeds(data, input_specs(model.graph), 64)
    changed = equalize(model, place(model.graph, QuantizeConfig()), feeds, memory_mb=64)
    after = Session(model).run({model.graph.inputs[0].name or "": data[0]})
    assert changed > 0 or make is Residual
    for name, wanted in before.items():
        np.testing.assert_allclose(after[name], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("make", "shape", "least"),
    [(Mobile, (3, 12, 12), 0.5), (Smooth, (7, 32), 6.0), (PostNorm, (7, 32), 3.0)],
)
def test_equalizing_gains(
    make: type[nn.Module], shape: tuple[int, ...], least: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = file_of(make(), tmp_path, shape)
    gained: NDArray[np.float64] = np.array(
        [
            quantize(
                path,
                batches(3, 16, shape),
                QuantizeConfig(equalize=even),
                out=tmp_path / "int8.onnx",
                time_it=False,
            ).sqnr_db
            for even in (False, True)
        ]
    )
    assert gained[1] >= gained[0] + least


def test_a_network_output_is_never_scaled(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    graph = prepare(load_onnx(file_of(model, tmp_path, (3, 8, 8)))).graph
    assert find_regions(graph, place(graph, QuantizeConfig())) == []


def test_even_channels_are_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    graph = prepare(load_onnx(file_of(model, tmp_path, (8,)))).graph
    regions = find_regions(graph, place(graph, QuantizeConfig()))
    assert len(regions) == 1
    assert not choose_factors(regions[0].readers, np.ones(8), np.ones(8)).changes


def test_a_bounded_clip_ends_a_region(tmp_path: Path) -> None:
    """What calibration did not show may reach the bound, so nothing on either side of it is scaled."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    graph = prepare(load_onnx(file_of(model, tmp_path, (3, 8, 8)))).graph
    assert find_regions(graph, place(graph, QuantizeConfig())) == []
    model[1] = nn.ReLU()
    graph = prepare(load_onnx(file_of(model, tmp_path, (3, 8, 8)))).graph
    assert len(find_regions(graph, place(graph, QuantizeConfig()))) == 1


def test_a_weak_channel_grows_four_times_at_most(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = prepare(load_onnx(file_of(model, tmp_path, (3, 8, 8)))).graph
    region = find_regions(graph, place(graph, QuantizeConfig()))[0]
    range_C = np.geomspace(1e-3, 1.0, 8)
    factor_C = choose_factors(region.readers, range_C, range_C**2 / 3).factor_C
    assert factor_C.min() >= 0.25
    assert np.any(factor_C != 1.0)
