"""Graphs written by hand, each with what a real one may hold and few do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from nets import graph_file, weights
from numpy.typing import NDArray
from onnx import helper
from safetensors.numpy import save_file
from torch import nn

from penjing.errors import QuantizeError
from penjing.events import silent
from penjing.quantize import QuantizeConfig, quantize, quantized_student
from penjing.quantize.equalize import equalize
from penjing.quantize.feeds import Feeds, input_specs
from penjing.quantize.graph import set_initializer
from penjing.quantize.job import Job
from penjing.quantize.pack import read_quantized
from penjing.quantize.place import place
from penjing.quantize.prepare import load_onnx, prepare
from penjing.quantize.runtime import Session

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


@pytest.mark.parametrize("change", ["lost", "cycle"])
def test_a_graph_that_reads_what_nothing_gives_is_named(change: str, tmp_path: Path) -> None:
    model = onnx.load(two_convs(tmp_path / "m.onnx"))
    if change == "lost":
        del model.graph.initializer[0]
    else:
        model.graph.node[0].input[0] = "y"
    onnx.save(model, tmp_path / "m.onnx")
    lost = {"lost": "w1", "cycle": "y"}[change]
    with pytest.raises(QuantizeError, match=rf"m\.onnx .*reads '{lost}', which nothing before it gives"):
        quantize(tmp_path / "m.onnx", data(), NEAREST, out=tmp_path / "q.onnx", time_it=False)


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


def prepared_error(path: Path, samples: list[NDArray[np.float32]]) -> float:
    """Largest change of the output by preparing and equalizing, relative to the largest output."""
    model = prepare(load_onnx(path))
    feeds = Feeds(samples, input_specs(model.graph), 64)
    equalize(model, place(model.graph, QuantizeConfig()), feeds, memory_mb=64)
    found, wanted = (Session(net).run({"x": samples[0]})["y"] for net in (model, path))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_a_constant_that_is_added_stops_equalization(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("Add", ["c1", "k"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"]),
    ]
    spread = np.logspace(-2, 1, 8, dtype=np.float32)[:, None, None, None]
    constants = {"w1": weights(8, 3, 3, 3) * spread, "k": 5 * weights(1, 8, 8, 8), "w2": weights(4, 8, 3, 3)}
    path = graph_file(tmp_path / "m.onnx", nodes, constants, {"x": [1, 3, 8, 8]})
    assert prepared_error(path, data(1)) < 1e-5


def test_a_norm_is_not_folded_over_a_computed_bias(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["b1", "k"], ["b"]),
        helper.make_node("Conv", ["x", "w1", "b"], ["c1"]),
        helper.make_node("BatchNormalization", ["c1", "g", "s", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"]),
    ]
    constants = {name: weights(8, seed=at) ** 2 + 1 for at, name in enumerate(("g", "s", "m", "v", "b1"))}
    constants |= {"k": 20 * weights(1), "w1": weights(8, 3, 3, 3), "w2": weights(4, 8, 3, 3)}
    path = graph_file(tmp_path / "m.onnx", nodes, constants, {"x": IMAGES})
    assert prepared_error(path, data()) < 1e-5


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_new_constants_take_no_name_of_the_networks_own(mode: str, tmp_path: Path) -> None:
    """The file is the same to the byte of its answers, whatever a parameter is called."""
    answers, kept = [], []
    for name in ("free", "p.scale", "w1.scale", "p.u8", "w1.q", "w1.zero_point", "p.float"):
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["p"]),
            helper.make_node("Relu", ["p"], ["r"]),
            helper.make_node("Mul", ["r", name], ["s"]),
            helper.make_node("MatMul", ["s", "w2"], ["y"]),
        ]
        constants = {"w1": weights(6, 8), name: 50 * weights(8, seed=1), "w2": weights(8, 4)}
        path = graph_file(tmp_path / "m.onnx", nodes, constants, {"x": ["n", 6]})
        samples = [weights(16, 6, seed=7)]
        config = QuantizeConfig(mode=mode, rounding="nearest")  # type: ignore[arg-type]
        made = quantize(path, samples, config, out=tmp_path / "q.onnx", time_it=False)
        answers.append(Session(made.path).run({"x": samples[0]})["y"])
        tensors = read_quantized(made.weights_path)[1]
        kept.append(tensors.get(f"{name}_", tensors.get(name)))
    for found, own in zip(answers, kept, strict=True):
        np.testing.assert_array_equal(found, answers[0])
        np.testing.assert_array_equal(own, 50 * weights(8, seed=1))


def test_equalization_that_changes_the_function_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: ir.Model, *_: Any, **__: Any) -> int:
        set_initializer(model.graph, "w1", 2 * weights(8, 3, 3, 3))
        return 1

    monkeypatch.setattr("penjing.quantize.job.equalize", broken)
    source = two_convs(tmp_path / "m.onnx")
    made = quantize(source, data(), NEAREST, out=tmp_path / "q.onnx", time_it=False)
    assert made.sqnr_db > 20
    assert any("stay uneven" in note for note in made.notes)


def test_a_poor_file_says_so(tmp_path: Path) -> None:
    source = two_convs(tmp_path / "m.onnx")
    for bits in (2, 8):
        config = NEAREST.model_copy(update={"weight_bits": bits})
        made = quantize(source, data(), config, out=tmp_path / "q.onnx", time_it=False)
        assert any("dB from fp32 only" in note for note in made.notes) == (made.sqnr_db < 10) == (bits == 2)


@pytest.mark.parametrize(
    "target",
    [{"mask": torch.zeros(8), "boxes": torch.zeros(8, 3)}, (torch.zeros(8), torch.zeros(8, 3)), 3]
    + [[torch.zeros(count, 4) for count in range(8)]],
    ids=["dict", "tuple", "number", "ragged"],
)
def test_targets_may_be_anything_until_a_metric_asks(target: Any, tmp_path: Path) -> None:
    source, x = two_convs(tmp_path / "m.onnx"), torch.from_numpy(data()[0])
    plain, held = (tmp_path / f"{name}.onnx" for name in ("plain", "held"))
    quantize(source, [x], NEAREST, out=plain, time_it=False)
    quantize(source, [(x, target)], NEAREST, out=held, time_it=False)
    assert held.read_bytes() == plain.read_bytes()
    config = NEAREST.model_copy(update={"max_drop": 0.1})
    with pytest.raises(QuantizeError, match="no array of 8 entries"):
        quantize(source, [(x, target)], config, out=held, time_it=False)


def test_inputs_in_bfloat16_are_read(tmp_path: Path) -> None:
    x = torch.from_numpy(data()[0]).bfloat16()
    feeds = Feeds([x], input_specs(load_onnx(two_convs(tmp_path / "m.onnx")).graph), 8)
    np.testing.assert_array_equal(next(feeds.batches())[0]["x"], x.float().numpy())


@pytest.mark.parametrize("make", [quantize, quantized_student])
def test_a_generator_is_read_once_and_no_farther_than_needed(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    read: list[int] = []

    def batches() -> Iterator[NDArray[np.float32]]:
        for at in range(99):
            read.append(at)
            yield weights(4, 6, seed=at)

    config = QuantizeConfig(samples=12, rounding="nearest")
    where = {"out": tmp_path / "q.onnx", "time_it": False} if make is quantize else {}
    made = make(model, batches(), config, **where)
    assert read == [0, 1, 2]
    again = make(model, [weights(4, 6, seed=at) for at in range(3)], config, **where)
    if make is quantize:
        assert made.layers == again.layers
    else:
        assert made.learned_params() == again.learned_params()


def test_a_metric_over_batches_of_several_lengths_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["y"])]
    source = graph_file(tmp_path / "m.onnx", nodes, {"w1": weights(6, 8)}, {"x": ["n", "t", 6]})
    lengths = [(weights(4, length, 6), np.zeros((4, length), int)) for length in (3, 5)]
    config, out = QuantizeConfig(max_drop=0.1, rounding="nearest"), tmp_path / "q.onnx"
    with pytest.raises(QuantizeError, match="batches differ in shape"):
        quantize(source, lengths, config, out=out, labels_metric=lambda z, y: 1.0, time_it=False)


@pytest.mark.parametrize("side", [3, 8, "side"])
@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_padding_by_name_becomes_numbers_or_is_left_aside(kind: str, side: int | str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], auto_pad=kind, strides=[2, 1]),
        helper.make_node("Conv", ["c1", "w2"], ["y"], auto_pad=kind),
    ]
    constants = {"w1": weights(8, 3, 3, 2), "w2": weights(4, 8, 1, 2)}
    x = weights(32, 3, 8 if isinstance(side, str) else side, 6)
    path = graph_file(tmp_path / "m.onnx", nodes, constants, {"x": ["n", 3, side, 6]})
    model = prepare(load_onnx(path))
    found, wanted = (Session(net).run({"x": x})["y"] for net in (model, path))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    left = ["auto_pad" in node.attributes for node in model.graph]
    assert left == [side == "side" and "SAME" in kind, False]
    made = quantize(path, [x], QuantizeConfig(), out=tmp_path / "q.onnx", time_it=False)
    assert made.sqnr_db > 20


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_what_only_the_static_mode_has_is_refused(mode: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'blocks' is for mode 'static'"):
        QuantizeConfig(mode=mode, rounding="blocks")
    with pytest.raises(QuantizeError, match="Use mode 'static'"):
        quantized_student(two_convs(tmp_path / "m.onnx"), data(), QuantizeConfig(mode=mode))


def test_a_misspelt_layer_to_ignore_is_named(tmp_path: Path) -> None:
    source = two_convs(tmp_path / "m.onnx")
    assert Job(source, data(), QuantizeConfig(ignore=("node*",)), 0, silent).names.keys() == {"c1", "y"}
    with pytest.raises(QuantizeError, match=r"'node_22\*'.*layers are node_2"):
        Job(source, data(), QuantizeConfig(ignore=("node", "node_22*")), 0, silent)


@pytest.mark.parametrize(
    "options",
    [
        {"ceil_mode": 1, "count_include_pad": 1},
        {"ceil_mode": 1, "count_include_pad": 1, "pads": [1] * 4},
        {"ceil_mode": 1, "count_include_pad": 1, "pads": [0, 0, 1, 2]},  # a last window in the padding
        {"ceil_mode": 1},
        {"count_include_pad": 1, "pads": [1] * 4},
        {"dilations": [1, 1]},
    ],
)
def test_average_pools_are_written_as_the_8_bit_kernel_computes_them(
    options: dict[str, Any], tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("AveragePool", ["c1"], ["p"], kernel_shape=[3, 3], strides=[2, 2], **options),
        helper.make_node("Conv", ["p", "w2"], ["y"]),
    ]
    named = {"w1": weights(8, 3, 3, 3), "w2": weights(4, 8, 1, 1)}
    path = graph_file(tmp_path / "m.onnx", nodes, named, {"x": IMAGES}, opset=19)
    result = quantize(path, data(), out=tmp_path / "q.onnx", time_it=False)
    assert not result.float_ops
    assert result.agreement_db > 40
    assert result.sqnr_db > 20
