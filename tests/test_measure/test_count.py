from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import MeasureError
from penjing.graph import trace
from penjing.measure import count
from penjing.models import build
from penjing.prune.cost import count_all


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(1, 2),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_convolution_costs_one_mac_for_each_product_in_its_sum(
    groups: int, per_in: int, per_out: int, kernel: int, stride: int, transposed: bool
) -> None:
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = make(groups * per_in, groups * per_out, kernel, stride=stride, groups=groups)
    x = torch.ones(1, groups * per_in, 7, 6)
    # With weights and inputs of 1 every product adds 1 to some output: their sum is the count (no padding).
    nn.init.ones_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    with torch.no_grad():
        assert count(conv, x).num_macs == int(conv(x).sum())


# A contraction over one element is an outer product, which einsum computes elementwise: k is at least 2.
@given(st.integers(1, 5), st.integers(2, 5), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_ways_to_write_one_product_cost_the_same(n: int, k: int, m: int) -> None:
    weight = nn.Parameter(torch.randn(m, k))

    class Product(nn.Module):
        def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self.weight, self.multiply = weight, multiply

        def forward(self, x: Tensor) -> Tensor:
            return self.multiply(x, self.weight)

    ways: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, w: F.linear(x, w),
        lambda x, w: x @ w.t(),
        lambda x, w: torch.einsum("bnk,mk->bnm", x, w),
        lambda x, w: torch.bmm(x, w.t().expand(len(x), -1, -1)),
        lambda x, w: torch.stack([torch.mv(x[0], row) for row in w]),
    ]
    for way in ways:
        counted = count(Product(way), torch.randn(2, n, k))
        assert counted.num_macs == n * k * m
        assert counted.num_params == k * m


CASES: dict[str, tuple[nn.Module, Any, int]] = {
    "linear": (nn.Linear(5, 7), torch.randn(3, 5), 5 * 7),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), torch.randn(1, 4, 10), 10 * 6 * 4 * 3),
    "conv3d": (nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(1, 8, 5, 5), 25 * 8 * 9),
    "bilinear": (nn.Bilinear(3, 4, 5), (torch.randn(2, 3), torch.randn(2, 4)), 3 * 4 * 5),
    "lstm": (
        nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True),
        torch.randn(2, 10, 6),
        10 * 4 * 8 * (2 * (6 + 8) + 2 * (16 + 8)),
    ),
    "gru": (nn.GRU(6, 8, batch_first=True), torch.randn(2, 10, 6), 10 * 3 * 8 * (6 + 8)),
    # Projections 4·d² a token, scores and their products with values 2·T·d a token.
    "attention": (
        nn.TransformerEncoderLayer(12, 3, dim_feedforward=20, batch_first=True),
        torch.randn(2, 7, 12),
        7 * (4 * 144 + 2 * 12 * 20) + 2 * 7 * 7 * 12,
    ),
    "resnet20": (build("resnet20", 10), torch.randn(1, 3, 32, 32), 40_551_040),
}


@pytest.mark.parametrize("name", CASES)
def test_known_costs(name: str) -> None:
    model, inputs, macs = CASES[name]
    counted = count(model, inputs)
    assert counted.num_macs == macs
    assert counted.num_params == sum(p.numel() for p in model.parameters())
    assert counted.num_macs == sum(layer.num_macs for layer in counted.layers)
    assert counted.num_params == sum(layer.num_params for layer in counted.layers)


def test_the_batch_does_not_matter_and_the_model_is_left_alone() -> None:
    model = build("vgg_small", 10, 1, 32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, many = (count(model, torch.randn(n, 1, 32, 32)) for n in (1, 5))
    assert one == many
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_costs_belong_to_the_layer_that_owns_the_weight() -> None:
    layers = {
        layer.name: layer for layer in count(build("vgg_small", 10, 1, 32), torch.zeros(1, 1, 32, 32)).layers
    }
    assert layers["features.0"].num_macs == 32 * 32 * 16 * 9
    assert layers["features.1"].num_macs == 0
    assert layers["features.1"].num_params == 32
    assert layers["classifier.1"].num_macs == 64 * 16 * 128


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x)) * self.scale
        return out


def test_a_weight_turned_or_copied_on_the_way_is_still_its_layers() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ParameterDict({"kernel": torch.randn(3, 3, 4, 6)})  # as Keras keeps it

        def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
            kernel_OIHW = self.layer["kernel"].permute(3, 2, 0, 1).contiguous()
            return nn.functional.conv2d(x_NCHW, kernel_OIHW.contiguous(memory_format=torch.channels_last))

    layers = count(Turned(), torch.zeros(2, 4, 5, 5)).layers
    assert [(layer.name, layer.num_macs) for layer in layers] == [("layer", 3 * 3 * 4 * 6 * 3 * 3)]


def test_a_shared_weight_counts_once_in_parameters_and_twice_in_macs() -> None:
    counted = count(Shared(), torch.randn(1, 6))
    assert counted.num_params == 36 + 6
    assert counted.num_macs == 72


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.view(3, 4))
        return out


def test_a_baked_batch_size_is_divided_out() -> None:
    assert count(FixedBatch(), torch.randn(3, 4)).num_macs == 16


def test_inputs_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(MeasureError, match="refuses the example inputs"):
        count(nn.Linear(4, 4), torch.randn(1, 5))


def test_inputs_by_name() -> None:
    assert count(nn.Linear(4, 3), {"input": torch.randn(2, 4)}).num_macs == 12


def test_a_model_on_the_meta_device_is_counted_without_memory() -> None:
    real = count(build("vgg_small", 10, 1, 32), torch.zeros(1, 1, 32, 32))
    model = build("vgg_small", 10, 1, 32).to("meta")
    assert count(model, torch.zeros(1, 1, 32, 32, device="meta")) == real


class OneImage(nn.Module):
    """Takes one image without a batch; its size is fixed."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(self.inner(x).reshape(6, 8, 8).relu())
        return y


@pytest.mark.parametrize("out", [3, 5])
def test_channels_of_a_single_image_are_no_batch(out: int) -> None:
    model, x = OneImage(out), torch.randn(3, 8, 8)
    macs = 64 * (6 * 3 * 9 + out * 6)
    assert count(model, x).num_macs == macs
    assert count_all(trace(model, x))["macs"] == macs
    assert count_all(trace(FixedBatch(), torch.randn(3, 4)))["macs"] == 16
