from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import batches
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from penjing.export.onnx import export_onnx
from penjing.quantize.bias import mean_output
from penjing.quantize.calibrate import calibrate
from penjing.quantize.descent import descend
from penjing.quantize.feeds import Feeds, input_specs
from penjing.quantize.graph import name_of, weight_axis, weight_of
from penjing.quantize.place import layer_names
from penjing.quantize.prepare import load_onnx, prepare
from penjing.quantize.rounding import Moments, second_order
from penjing.quantize.weights import PAIR_MAX, Guard, as_rows, quantize_weight

CONVS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 8, (3, 2), stride=2, padding=(2, 0), groups=2),
    nn.Conv2d(4, 4, 3, dilation=2, groups=4),
]


@pytest.mark.parametrize("conv", CONVS, ids=["plain", "grouped", "depthwise"])
def test_mean_output_is_the_mean_of_outputs(conv: nn.Conv2d, tmp_path: Path) -> None:
    path = export_onnx(conv.eval(), tmp_path / "c.onnx", torch.zeros(2, 4, 9, 9))
    node = next(n for n in prepare(load_onnx(path)).graph if n.op_type == "Conv")
    x = batches(1, 12, (4, 9, 9))[0]
    with torch.no_grad():
        y = conv(torch.from_numpy(x)).mean(dim=(0, 2, 3)).numpy()
    assert conv.bias is not None
    got = mean_output(node, x.mean(axis=0, dtype=np.float64), weight_of(node))
    assert got is not None
    np.testing.assert_allclose(got + conv.bias.detach().numpy(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv", CONVS, ids=["plain", "grouped", "depthwise"])
def test_moments_predict_the_output_error(conv: nn.Conv2d, tmp_path: Path) -> None:
    """``E‖ΔW·x‖² = Σ Δw H Δwᵀ`` in the order of the rows, when all positions are used."""
    path = export_onnx(conv.eval(), tmp_path / "c.onnx", torch.zeros(2, 4, 9, 9))
    model = prepare(load_onnx(path))
    node = next(n for n in model.graph if n.op_type == "Conv")
    data = batches(2, 6, (4, 9, 9))
    feeds = Feeds(data, input_specs(model.graph), 64)
    heard = Moments({"y": node}, positions=32)
    calibrate(model, feeds, [], observer="mse", also=heard.visits, values_per_sample=64, memory_mb=64)
    moments = heard.means()["y"]
    w = np.random.default_rng(0).normal(size=weight_of(node).shape).astype(np.float32)
    rows_OK = as_rows(w, 0).astype(np.float64)
    per_group = len(rows_OK) // len(moments)
    predicted = [r @ moments[o // per_group] @ r for o, r in enumerate(rows_OK)]
    x = torch.from_numpy(np.concatenate(data))
    y = functional.conv2d(
        x,
        torch.from_numpy(w),
        None,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    found = y.square().mean(dim=(0, 2, 3)).numpy()
    tolerance = 1e-4 if y.shape[2] * y.shape[3] <= 32 else 0.2
    np.testing.assert_allclose(predicted, found, rtol=tolerance)


@pytest.mark.parametrize("guard", ["off", "pairs", "full"])
def test_second_order_beats_nearest_on_correlated_inputs(guard: Guard) -> None:
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(24, 24))
    x = draw.normal(size=(4000, 24)) @ mix
    w = draw.normal(size=(10, 24)).astype(np.float32)
    nearest = quantize_weight(w, 0, guard=guard)
    better = second_order(w, nearest, (x.T @ x / len(x))[None], guard=guard)
    errors = [np.square(x @ (q.dequantized() - w).T).mean() for q in (nearest, better)]
    assert errors[1] < 0.8 * errors[0]
    if guard == "pairs":
        q = better.q.astype(int)
        assert np.abs(q[:, ::2] + q[:, 1::2]).max() <= 128


@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 6),
    st.sampled_from([("off", 127), ("pairs", 127), ("off", 7)]),
)
def test_descent_never_raises_the_error_and_ends_where_no_level_helps(
    seed: int, groups: int, size: int, outputs: int, kind: tuple[Guard, int]
) -> None:
    guard, top = kind
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(groups, size, outputs))
    scale = np.broadcast_to(np.abs(rows).max((1, 2), keepdims=True) / top, rows.shape)
    x = draw.normal(size=(groups, 2 * size + 4, size)) @ draw.normal(size=(groups, size, size))
    h = x.transpose(0, 2, 1) @ x + np.eye(size)

    def error(levels: NDArray[np.float64]) -> NDArray[np.float64]:
        e = levels * scale - rows
        return np.asarray(np.einsum("gko,gkj,gjo->go", e, h, e))

    start = np.clip(np.rint(rows / scale), -64 if guard == "pairs" else -top, 64 if guard == "pairs" else top)
    levels = start.copy()
    descend(levels, rows, scale, h, guard=guard, top=top, sweeps=500)
    assert np.all(error(levels) <= error(start) * (1 + 1e-9))
    assert np.array_equal(levels, np.rint(levels))
    assert np.abs(levels).max() <= top
    if guard == "pairs":
        even = levels[:, : size // 2 * 2]
        assert np.abs(even[:, ::2] + even[:, 1::2]).max(initial=0) <= PAIR_MAX
        return
    k = int(draw.integers(size))
    for step in (-1, 1):  # no single level can be moved for the better
        moved = levels.copy()
        moved[:, k] = np.clip(moved[:, k] + step, -top, top)
        assert np.all(error(moved) >= error(levels) * (1 - 1e-9))


def test_white_inputs_leave_rounding_to_nearest() -> None:
    w = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    nearest = quantize_weight(w, 0, method="absmax")
    again = second_order(w, nearest, np.eye(12)[None], guard="off")
    np.testing.assert_array_equal(nearest.q, again.q)


def test_a_layer_of_one_input_is_rounded() -> None:
    w = np.array([[0.3], [-1.2], [0.7]], np.float32)
    nearest = quantize_weight(w, 0, method="absmax")
    found = second_order(w, nearest, np.full((1, 1, 1), 2.0), guard="off", refine=True)
    np.testing.assert_array_equal(found.q, nearest.q)


def test_layer_names_are_distinct_and_axes_right(tmp_path: Path) -> None:
    linear = nn.Linear(6, 3)
    model = nn.Sequential(linear, nn.ReLU(), nn.Linear(3, 6), nn.ReLU(), linear).eval()
    graph = prepare(load_onnx(export_onnx(model, tmp_path / "m.onnx", torch.zeros(2, 6)))).graph
    names = layer_names(graph)
    assert len(set(names.values())) == 3
    for node in graph:
        if name_of(node.outputs[0]) in names:
            assert weight_of(node).shape[weight_axis(node)] in (3, 6)


@pytest.mark.parametrize("power", [-80, -40, 40])
def test_the_size_of_inputs_does_not_matter(power: int) -> None:
    """Of inputs of 1e-8 the moments are 1e-16, which is not nothing."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 12)) @ draw.normal(size=(12, 12))
    w = draw.normal(size=(8, 12)).astype(np.float32)
    nearest, moments_GKK = quantize_weight(w, 0, top=7), (x.T @ x / len(x))[None]
    found = second_order(w, nearest, moments_GKK, guard="off", top=7)
    assert not np.array_equal(found.q, nearest.q)
    sized = second_order(w, nearest, np.ldexp(moments_GKK, power), guard="off", top=7)
    assert np.array_equal(sized.q, found.q)
