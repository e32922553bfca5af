"""Two thin layers in the place of one: the same function at full rank, the nearest one below it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.factor.columns import Columns
from penjing.factor.pair import Layer, Pair, refusal
from penjing.measure import count

_LAYERS: tuple[tuple[Layer, tuple[int, ...]], ...] = (
    (nn.Linear(10, 7), (4, 5, 10)),
    (nn.Linear(10, 7, bias=False), (6, 10)),
    (nn.Conv1d(5, 6, 3, stride=2, padding=1), (4, 5, 21)),
    (nn.Conv1d(5, 6, 4, padding="same", dilation=2), (4, 5, 21)),
    (nn.Conv2d(4, 6, 3, padding=1), (4, 4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 0), bias=False), (4, 4, 9, 12)),
    (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(1, 2)), (4, 4, 9, 12)),
    (nn.Conv2d(4, 6, 1, stride=2), (4, 4, 9, 8)),
)


def _watched(layer: Layer, x: Tensor) -> Columns:
    columns = Columns(layer)
    with torch.no_grad():
        columns.add(x, layer(x), 10**9, torch.Generator().manual_seed(0))
    return columns


@pytest.mark.parametrize(("layer", "shape"), _LAYERS, ids=lambda value: str(value).replace(" ", ""))
def test_at_full_rank_a_pair_is_its_layer(layer: Layer, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    columns = _watched(layer, x)
    pair = columns.pair(columns.full_rank)
    torch.testing.assert_close(pair(x), layer(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pair.weight, layer.weight, rtol=1e-4, atol=1e-4)
    assert pair.rank == columns.full_rank
    assert pair.training == layer.training
    torch.testing.assert_close(pair(x[0]), layer(x[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "shape"), _LAYERS, ids=lambda value: str(value).replace(" ", ""))
def test_what_a_rank_costs_is_counted(layer: Layer, shape: tuple[int, ...]) -> None:
    columns = _watched(layer, torch.randn(shape))
    example = torch.zeros(1, *shape[1:])
    for choice in columns.by_macs(count(layer, example).num_macs)[1:]:
        assert choice.rank is not None
        assert count(columns.pair(choice.rank), example).num_macs == choice.cost
    for choice in columns.by_params()[1:]:
        assert choice.rank is not None
        pair = columns.pair(choice.rank)
        assert sum(value.numel() for value in pair.parameters() if value.dim() > 1) == choice.cost


@pytest.mark.parametrize("bias", [False, True])
def test_no_product_of_that_rank_is_nearer_on_the_data(bias: bool) -> None:
    torch.manual_seed(2)
    layer = nn.Linear(12, 9, bias=bias)
    x = torch.randn(500, 12) @ torch.randn(12, 12) + 3.0
    columns = _watched(layer, x)
    with torch.no_grad():
        y = layer(x)
        power = (y - y.mean(0) if bias else y).square().sum()
        for choice in columns.by_params()[1:]:
            assert choice.rank is not None
            pair = columns.pair(choice.rank)
            found = float((pair(x) - y).square().sum() / power)
            assert found == pytest.approx(choice.error, rel=1e-2, abs=1e-5)  # Eckart and Young
            u, s, v = torch.linalg.svd(layer.weight)
            plain = (u[:, : choice.rank] * s[: choice.rank]) @ v[: choice.rank]
            by_weight = nn.functional.linear(x, plain, layer.bias)
            assert found < float((by_weight - y).square().sum() / power)


def test_wide_layers_go_by_the_size_of_each_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    import penjing.factor.columns as home

    monkeypatch.setattr(home, "_WIDEST", 8)
    torch.manual_seed(3)
    layer = nn.Linear(12, 9)
    x = torch.randn(400, 12) * torch.logspace(-2, 1, 12)
    wide, even = _watched(layer, x), Columns(layer)
    with torch.no_grad():
        errors = [float((columns.pair(4)(x) - layer(x)).square().mean()) for columns in (wide, even)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.ConvTranspose2d(4, 4, 3), "no plain"),
        (nn.Conv3d(4, 4, 3), "no plain"),
        (type("Own", (nn.Linear,), {})(4, 4), "no plain"),
    ],
)
def test_what_stays_whole(layer: Any, why: str) -> None:
    assert why in str(refusal(layer))


def test_a_pair_is_as_its_layer_was() -> None:
    layer = nn.Conv2d(3, 8, 3, dtype=torch.float64).requires_grad_(False).eval()
    pair = Columns(layer).pair(2)
    assert isinstance(pair, Pair)
    assert not pair.training
    assert {value.dtype for value in pair.parameters()} == {torch.float64}
    assert not any(value.requires_grad for value in pair.parameters())
    assert pair.bias is not None
