from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from nets import Batches, batches
from numpy.typing import NDArray
from torch import nn

from penjing.export.onnx import export_onnx
from penjing.quantize import QuantizeConfig, quantize
from penjing.quantize.feeds import Feeds, input_specs
from penjing.quantize.grid import _pads, align_inputs, find_grid
from penjing.quantize.place import place
from penjing.quantize.prepare import load_onnx, prepare
from penjing.quantize.runtime import Session

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pixels(count: int = 32, side: int = 16, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)


def normalised(
    x: NDArray[np.uint8], mean: NDArray[np.float64] = MEAN, std: NDArray[np.float64] = STD
) -> Batches:
    y = (x / np.float32(255) - mean[:, None, None].astype(np.float32)) / std[:, None, None].astype(np.float32)
    return [y.astype(np.float32)]


def net(padding: int = 1) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=padding, bias=padding == 0)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()


@pytest.fixture(scope="module", params=[0, 1], ids=["no padding", "padding"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    model = net(request.param)
    model(torch.zeros(1, 3, 16, 16))
    return export_onnx(model, folder / "m.onnx", torch.zeros(2, 3, 16, 16))


def feeds_of(file: Path, data: Batches) -> Feeds:
    return Feeds(data, input_specs(prepare(load_onnx(file)).graph), 64)


def test_the_grid_of_normalised_bytes_is_found(file: Path) -> None:
    """``k = 255·(x·std + mean)``: pitch 1/(255·std), origin −mean/std."""
    feeds = feeds_of(file, normalised(pixels()))
    grid = find_grid(feeds, feeds.specs[0].name)
    assert grid is not None
    np.testing.assert_allclose(grid.pitch_C, 1 / (255 * STD), rtol=1e-5)
    np.testing.assert_allclose(grid.origin_C, -MEAN / STD, rtol=1e-4)
    assert grid.plain() is None


def test_unit_images_need_no_change_to_the_network(file: Path) -> None:
    feeds = feeds_of(file, normalised(pixels(), np.zeros(3), np.ones(3)))
    grid = find_grid(feeds, feeds.specs[0].name)
    assert grid is not None
    plain = grid.plain()
    assert plain is not None
    assert plain.zero_point == 0
    assert plain.scale == pytest.approx(1 / 255, rel=1e-5)


def test_unseen_levels_have_room_on_both_sides(file: Path) -> None:
    data = normalised(pixels() // 2 + 60)  # levels 60 to 187 of 0 to 255
    feeds = feeds_of(file, data)
    grid = find_grid(feeds, feeds.specs[0].name)
    assert grid is not None
    ends_C = (
        np.array([data[0].min(axis=(0, 2, 3)), data[0].max(axis=(0, 2, 3))]) - grid.origin_C
    ) / grid.pitch_C
    np.testing.assert_allclose(ends_C, [[64] * 3, [191] * 3], atol=0.01)


@pytest.mark.parametrize("kind", ["continuous", "one pixel off", "sparse", "too wide"])
def test_other_data_has_no_grid(file: Path, kind: str) -> None:
    if kind == "continuous":
        data = batches(1, 32)
    else:
        data = normalised(pixels())
        if kind == "one pixel off":
            data[0][-1, 1, 3, 3] += 0.3 / 255 / 0.224
        elif kind == "sparse":
            data = normalised(pixels() % 8 * 30)
        else:
            data[0][-1, 0, 0, 0] += 300 / 255 / 0.229
    feeds = feeds_of(file, data)
    assert find_grid(feeds, feeds.specs[0].name) is None


def test_aligning_keeps_the_function_and_stores_the_input_exactly(file: Path) -> None:
    data = normalised(pixels())
    model = prepare(load_onnx(file))
    feeds = Feeds(data, input_specs(model.graph), 64)
    placement = place(model.graph, QuantizeConfig())
    before = next(iter(Session(model).run({feeds.specs[0].name: data[0]}).values()))
    (name,), (params,) = zip(*align_inputs(model.graph, placement, feeds).items(), strict=True)
    assert (params.scale, params.zero_point) == (1.0, 0)
    assert name in place(model.graph, QuantizeConfig()).observed
    after = next(iter(Session(model).run({feeds.specs[0].name: data[0]}).values()))
    np.testing.assert_allclose(after, before, atol=1e-5)
    levels = Session(model, outputs=[name]).run({feeds.specs[0].name: data[0]})[name]
    inner = levels if levels.shape[2] == 16 else levels[:, :, 1:-1, 1:-1]
    np.testing.assert_allclose(inner, pixels(), atol=1e-3)


def test_the_aligned_file_is_no_farther_from_fp32(file: Path, tmp_path: Path) -> None:
    """On images that calibration did not see; here rounded weights make most of the error."""
    fresh = normalised(pixels(seed=9))[0]
    wanted = next(iter(Session(file).run({feeds_of(file, [fresh]).specs[0].name: fresh}).values()))
    noise = {}
    for align in (False, True):
        config = QuantizeConfig(align_inputs=align)
        result = quantize(file, normalised(pixels()), config, out=tmp_path / f"{align}.onnx", time_it=False)
        session = ort.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: fresh})[0]
        noise[align] = float(np.square(found - wanted).sum())
        assert result.num_quantized == 2
        assert any("grid" in note for note in result.notes) == align
    assert noise[True] < 1.05 * noise[False]


@pytest.mark.parametrize("shift", [0, 20, 600])
def test_padding_is_stored_with_the_image(file: Path, shift: int) -> None:
    """Images without dark pixels have 0 among their levels; temperatures do not, and are not padded."""
    data = [((pixels() // 2 + np.float32(100 + shift)) / np.float32(255)).astype(np.float32)]
    model = prepare(load_onnx(file))
    feeds = Feeds(data, input_specs(model.graph), 64)
    grid = find_grid(feeds, feeds.specs[0].name)
    assert grid is not None
    assert grid.holds_zero() == (shift < 600)
    padded = any(node.op_type == "Conv" and any(_pads(node)) for node in model.graph)
    aligned = align_inputs(model.graph, place(model.graph, QuantizeConfig()), feeds)
    assert bool(aligned) == (not padded or shift < 600)
