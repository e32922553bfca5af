from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from nets import Batches, Block, Residual, Vgg, batches, conv_chain, trained_stats
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from penjing.errors import QuantizeError
from penjing.events import Event
from penjing.export.onnx import export_onnx
from penjing.quantize import QuantizeConfig, QuantizeResult, job, load_quantized, quantize, read_header
from penjing.quantize.check import FileCheck
from penjing.quantize.cpu import sums_pairs_in_16_bits
from penjing.quantize.mixed import agreement, top1


def kernels(path: Path, folder: Path) -> Counter[str]:
    """Op types of the graph that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def run(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    out: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return out


@pytest.fixture(scope="module")
def vgg() -> nn.Module:
    return trained_stats(Vgg())


@pytest.fixture(scope="module")
def vgg_file(vgg: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(vgg, tmp_path_factory.mktemp("f") / "fp32.onnx", torch.zeros(2, 3, 16, 16))


@pytest.fixture(scope="module")
def vgg_result(vgg: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    out = tmp_path_factory.mktemp("q") / "m.int8.onnx"
    return quantize(vgg, batches(), QuantizeConfig(sensitivity=True), out=out)


def test_every_layer_runs_in_an_int8_kernel(vgg_result: QuantizeResult, tmp_path: Path) -> None:
    ops = kernels(vgg_result.path, tmp_path)
    assert ops["QLinearConv"] == 2
    assert ops["QGemm"] == 2
    assert not ops.keys() & {"Conv", "Gemm", "FusedConv", "FusedGemm", "MaxPool", "Relu"}
    assert ops["QuantizeLinear"] == 1  # only the network's input
    assert (vgg_result.num_quantized, vgg_result.num_float) == (4, 0)


def test_the_output_is_close_on_fresh_data(vgg: nn.Module, vgg_result: QuantizeResult) -> None:
    x = batches(1, 32, seed=99)[0]
    with torch.no_grad():
        wanted = vgg(torch.from_numpy(x)).numpy()
    error = run(vgg_result.path, x) - wanted
    assert 10 * np.log10(np.square(wanted).sum() / np.square(error).sum()) > 25
    assert vgg_result.sqnr_db > 25
    assert vgg_result.agreement_db >= 35


def test_the_file_holds_no_float_copies(vgg_result: QuantizeResult) -> None:
    kinds: Counter[int] = Counter()
    for tensor in onnx.load(vgg_result.path).graph.initializer:
        kinds[tensor.data_type] += numpy_helper.to_array(tensor).size
    weights = 16 * 4 * 9 + 32 * 16 * 9 + 512 * 64 + 640  # a fourth channel beside the three of images
    assert kinds[onnx.TensorProto.INT8] == weights + 16 + 32 + 64 + 10  # and one zero point per channel
    assert kinds[onnx.TensorProto.FLOAT] < 300
    assert vgg_result.size_bytes < vgg_result.fp32_bytes / 3


def test_the_weights_file_says_what_the_onnx_file_says(vgg_result: QuantizeResult) -> None:
    model = onnx.load(vgg_result.path)
    inits = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = load_quantized(vgg_result.weights_path)
    header = read_header(vgg_result.weights_path)
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    checked = 0
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        for position in (1, 2):
            name, scale, zero = made[node.input[position]].input
            shape = [-1] + [1] * (inits[name].ndim - 1)
            levels = inits[name].astype(np.int64) - inits[zero].reshape(shape)
            exact = levels.astype(np.float32) * inits[scale].reshape(shape)
            own = tuple(slice(size) for size in weights[name].shape)  # the image's channels became four
            np.testing.assert_array_equal(weights[name], exact[own])
            assert np.count_nonzero(exact) == np.count_nonzero(weights[name])
            checked += 1
    assert checked == 8
    assert [layer["name"] for layer in header["layers"]] == [row.name for row in vgg_result.layers]
    assert {layer["op"] for layer in header["layers"]} == {"Conv", "Gemm"}


def test_bias_steps_are_input_times_weight_steps(vgg_result: QuantizeResult) -> None:
    inits = {t.name: numpy_helper.to_array(t) for t in onnx.load(vgg_result.path).graph.initializer}
    for layer in read_header(vgg_result.weights_path)["layers"]:
        input_step = inits[f"{layer['scale_of']}.scale"].astype(np.float64)
        expected = input_step * inits[f"{layer['weight']}.scale"]
        np.testing.assert_allclose(inits[f"{layer['bias']}.scale"], expected, rtol=1e-6)
        assert inits[layer["bias"]].dtype == np.int32


def test_weights_are_the_modules_own(vgg: nn.Module, vgg_file: Path, tmp_path: Path) -> None:
    """Rounded to nearest without equalization, a Gemm's weight is the module's to half a step."""
    config = QuantizeConfig(
        equalize=False, weights="absmax", rounding="nearest", reduce_range="off", min_agreement_db=-200
    )
    result = quantize(vgg_file, batches(), config, out=tmp_path / "m.onnx", time_it=False)
    weights = load_quantized(result.weights_path)
    own = vgg.state_dict()["classifier.4.weight"].numpy()
    steps_O = np.abs(own).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(weights["classifier.4.weight"] - own) <= 0.5001 * steps_O)


def test_rows_have_every_layer_with_its_errors(vgg_result: QuantizeResult) -> None:
    names = [row.name for row in vgg_result.layers]
    assert names == ["features.0", "features.4", "classifier.1", "classifier.4"]
    for row in vgg_result.layers:
        assert row.weight_db is not None
        assert row.weight_db > 30
        assert row.output_db is not None
        assert row.output_db > 20
        assert row.gain_db is not None
    json.dumps(vgg_result.to_dict(), allow_nan=False)


def test_the_same_seed_gives_the_same_bytes(vgg_file: Path, tmp_path: Path) -> None:
    paths = [quantize(vgg_file, batches(), out=tmp_path / f"{i}.onnx", time_it=False).path for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_batch_size_of_the_data_does_not_matter(vgg_file: Path, tmp_path: Path) -> None:
    """Same samples in other batches: the same scales (bias means may differ in the last float bit)."""
    small = [part for batch in batches() for part in np.split(batch, 4)]
    one = quantize(vgg_file, batches(), out=tmp_path / "a.onnx", time_it=False)
    two = quantize(vgg_file, small, out=tmp_path / "b.onnx", time_it=False)
    for first, second in zip(one.layers, two.layers, strict=True):
        assert first.range_min == pytest.approx(second.range_min, rel=1e-4)
        assert first.range_max == pytest.approx(second.range_max, rel=1e-4)


@pytest.fixture(scope="module")
def residual_result(tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    torch.manual_seed(1)
    return quantize(Residual().eval(), batches(), out=tmp_path_factory.mktemp("r") / "r.onnx", time_it=False)


def test_adds_concats_pads_and_means_are_int8(residual_result: QuantizeResult, tmp_path: Path) -> None:
    ops = kernels(residual_result.path, tmp_path)
    assert ops["QLinearConv"] == 5
    assert ops["QLinearAdd"] == 2
    assert ops["QLinearConcat"] == 1
    assert ops["QLinearGlobalAveragePool"] == 1
    assert ops["QGemm"] == 1
    assert ops["QuantizeLinear"] == 1
    assert not ops.keys() & {"Conv", "Relu", "Clip", "Add", "Concat", "ReduceMean", "FusedConv"}
    assert residual_result.float_ops == ()
    assert residual_result.sqnr_db > 20


class Fork(nn.Module):
    """A convolution read both before and after its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        out: torch.Tensor = self.c(self.b(torch.relu(x)) + x)
        return out


def test_a_relu_beside_other_readers_keeps_the_chain_8_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = quantize(Fork().eval(), batches(2), out=tmp_path / "f.onnx", time_it=False)
    ops = kernels(result.path, tmp_path)
    assert (ops["QLinearConv"], ops["QLinearAdd"], ops["Add"]) == (3, 1, 0)
    assert result.sqnr_db > 25


def test_ops_without_a_rule_stay_float_and_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = batches(3, 8, (12, 24))
    result = quantize(Block().eval(), data, out=tmp_path / "b.onnx", time_it=False)
    named = {op: why for _, op, why in result.float_ops}
    assert named["LayerNormalization"] == "no rule for LayerNormalization"
    assert named["Softmax"] == "no rule for Softmax"
    assert result.num_quantized == 2
    ops = kernels(result.path, tmp_path)
    assert ops["MatMulIntegerToFloat"] + ops["QLinearMatMul"] + ops["QGemm"] == 2
    assert result.sqnr_db > 30


def test_ignored_layers_stay_float(vgg_file: Path, tmp_path: Path) -> None:
    result = quantize(
        vgg_file, batches(), QuantizeConfig(ignore=("classifier.*",)), out=tmp_path / "m.onnx", time_it=False
    )
    assert [row.quantized for row in result.layers] == [True, True, False, False]
    assert result.layers[-1].why == "ignored by the user"
    assert kernels(result.path, tmp_path)["QLinearConv"] == 2


def test_hand_written_onnx_with_batch_norm(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights = [draw.normal(size=s).astype(np.float32) * 0.2 for s in ((8, 4, 3, 3), (5, 8, 3, 3))]
    path = conv_chain(tmp_path / "fp32.onnx", weights)
    data = batches(2, 16, (4, 8, 8))
    result = quantize(path, data, out=tmp_path / "int8.onnx", time_it=False)
    ops = kernels(result.path, tmp_path)
    assert ops["QLinearConv"] == 2
    assert not ops["BatchNormalization"]
    wanted = run(path, data[0])
    error = run(result.path, data[0]) - wanted
    assert 10 * np.log10(np.square(wanted).sum() / np.square(error).sum()) > 28


def test_a_fixed_batch_graph_is_fed_whole_batches(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    path = conv_chain(tmp_path / "fp32.onnx", [w], batch=4)
    result = quantize(path, batches(1, 10, (4, 8, 8)), out=tmp_path / "int8.onnx", time_it=False)
    assert result.samples == 8
    with pytest.raises(QuantizeError, match="no full batch"):
        quantize(path, batches(1, 3, (4, 8, 8)), out=tmp_path / "int8.onnx")


def test_a_fixed_batch_larger_than_any_sampling_is_fed_whole(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    path = conv_chain(tmp_path / "fp32.onnx", [w, w[:, :, :1, :1].repeat(2, axis=1)], batch=40)
    config = QuantizeConfig(check_samples=4, samples=16)
    result = quantize(path, batches(1, 40, (4, 8, 8)), config, out=tmp_path / "int8.onnx", time_it=False)
    assert result.samples == 40
    assert result.sqnr_db > 25


def test_large_biases_on_tiny_weights_fit_32_bits(tmp_path: Path) -> None:
    first = nn.Linear(8, 8)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        first.weight[0] *= 1e-9
        first.bias[0] = 50.0
    data = batches(2, 16, (8,))
    result = quantize(model, data, out=tmp_path / "m.onnx", time_it=False)
    with torch.no_grad():
        wanted = model(torch.from_numpy(data[0])).numpy()
    assert np.abs(run(result.path, data[0]) - wanted).max() < 0.05 * np.abs(wanted).max()


def test_saturation_is_guarded_on_any_machine(tmp_path: Path) -> None:
    """All weights and inputs at their largest: the worst case of a 16-bit sum."""
    model = nn.Linear(64, 4).eval()
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.weight[:, ::7] = -0.5
    data = [np.abs(batch) for batch in batches(2, 16, (64,))]
    data[0][0] = data[0].max()
    config = QuantizeConfig(reduce_range="pairs")
    result = quantize(model, data, config, out=tmp_path / "m.onnx", time_it=False)
    assert result.agreement_db > 100
    assert result.sqnr_db > 35


@pytest.mark.parametrize("saturates", [True, False])
@pytest.mark.parametrize("mode", ["static", "weight_only"])
def test_a_file_for_32_bit_sums_alone_says_so(
    saturates: bool, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made where sums have 32 bits, it may be served where they have not."""
    monkeypatch.setattr("penjing.quantize.job.sums_pairs_in_16_bits", lambda: saturates)
    config = QuantizeConfig.of({"mode": mode, "min_agreement_db": -np.inf})
    data = batches(2, 16, (64,))
    result = quantize(nn.Linear(64, 4).eval(), data, config, out=tmp_path / "m.onnx", time_it=False)
    told = any("without VNNI" in note for note in result.notes)
    assert told == (not saturates and mode == "static")


@pytest.mark.skipif(not sums_pairs_in_16_bits(), reason="this CPU sums 8-bit products in 32 bits")
def test_saturating_kernels_are_caught(vgg_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="farther from fp32"):
        quantize(vgg_file, batches(), QuantizeConfig(reduce_range="off"), out=tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_max_drop_returns_layers_to_float(vgg: nn.Module, vgg_file: Path, tmp_path: Path) -> None:
    """A metric that wants the outputs almost exact cannot be met by int8 alone."""
    data = batches(2)
    with torch.no_grad():
        labelled = [(x, vgg(torch.from_numpy(x)).numpy()) for x in data]

    def closeness(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        return 1.0 - float(np.abs(outputs - targets).mean() / np.abs(targets).mean())

    loose = quantize(
        vgg_file,
        labelled,
        QuantizeConfig(max_drop=0.5),
        out=tmp_path / "a.onnx",
        labels_metric=closeness,
        time_it=False,
    )
    assert loose.metric_fp32 is not None
    assert loose.metric_int8 is not None
    assert loose.num_quantized == 4
    drop = loose.metric_fp32 - loose.metric_int8
    tight = quantize(
        vgg_file,
        labelled,
        QuantizeConfig(max_drop=drop * 0.8),
        out=tmp_path / "b.onnx",
        labels_metric=closeness,
        time_it=False,
    )
    assert tight.metric_int8 is not None
    assert tight.metric_fp32 is not None
    assert tight.metric_fp32 - tight.metric_int8 <= drop * 0.8
    assert 0 < tight.num_quantized < 4
    assert tight.metric_samples == 32
    assert any("max_drop" in row.why for row in tight.layers)
    with pytest.raises(QuantizeError, match="max_drop"):
        quantize(
            vgg_file,
            labelled,
            QuantizeConfig(max_drop=0.0),
            out=tmp_path / "c.onnx",
            labels_metric=lambda outputs, targets: closeness(outputs, targets),
            time_it=False,
        )


@pytest.mark.parametrize(
    ("observer", "rounding"),
    [
        ("min_max", "nearest"),
        ("moving_average", "second_order"),
        ("percentile", "descent"),
        ("entropy", "nearest"),
    ],
)
def test_every_observer_gives_a_usable_file(
    vgg_file: Path, tmp_path: Path, observer: str, rounding: str
) -> None:
    config = QuantizeConfig(observer=observer, rounding=rounding)  # type: ignore[arg-type]
    result = quantize(vgg_file, batches(), config, out=tmp_path / "m.onnx", time_it=False)
    assert result.sqnr_db > 18


def test_timing_says_whether_int8_pays(vgg_file: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    result = quantize(vgg_file, batches(), out=tmp_path / "m.onnx", listen=heard.append)
    assert result.timing is not None
    assert result.timing.speedup == pytest.approx(result.timing.fp32_ms / result.timing.int8_ms)
    assert result.timing.pays == (not any("does not pay" in note for note in result.notes))
    assert [heard[0].kind, heard[-1].kind] == ["start", "end"]


def bad_batches(kind: str) -> Batches:
    data = batches(1)
    if kind == "nan":
        data[0][3, 0, 0, 0] = np.nan
    return {
        "nan": data,
        "constant": [np.ones_like(data[0])],
        "shape": [data[0][:, :2]],
        "empty": [],
        "no samples": [data[0][:0]],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("nan", "NaN"),
        ("constant", "constant"),
        ("shape", "shape 16×2×16×16"),
        ("empty", "empty"),
        ("no samples", "empty"),
    ],
)
def test_bad_calibration_data_is_refused(vgg_file: Path, tmp_path: Path, kind: str, text: str) -> None:
    with pytest.raises(QuantizeError, match=text):
        quantize(vgg_file, bad_batches(kind), out=tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_activations_that_overflow_are_named(tmp_path: Path) -> None:
    first = nn.Linear(8, 8)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        first.weight.fill_(3e38)
    with pytest.raises(QuantizeError, match="NaN or infinite"):
        quantize(model, [np.abs(batches(1, 8, (8,))[0])], out=tmp_path / "m.onnx")


def test_a_dead_layer_stays_float_and_is_named(tmp_path: Path) -> None:
    dead = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), dead, nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        dead.bias.fill_(-100.0)
    result = quantize(model, batches(2, 8, (8,)), out=tmp_path / "m.onnx", time_it=False)
    assert [row.quantized for row in result.layers] == [True, True, False]
    assert "constant" in result.layers[-1].why


def test_a_generator_is_read_once(vgg_file: Path, tmp_path: Path) -> None:
    def stream() -> Iterator[NDArray[np.float32]]:
        yield from batches()

    once = quantize(vgg_file, stream(), out=tmp_path / "a.onnx", time_it=False)
    again = quantize(vgg_file, batches(), out=tmp_path / "b.onnx", time_it=False)
    assert once.path.read_bytes() == again.path.read_bytes()


def test_a_quantized_file_is_refused(vgg_result: QuantizeResult, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="quantized already"):
        quantize(vgg_result.path, batches(), out=tmp_path / "m.onnx")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(QuantizeError, match="cannot read"):
        quantize(tmp_path / "x.onnx", batches(), out=tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match="cannot read"):
        load_quantized(tmp_path / "x.onnx")


def test_what_max_drop_goes_by() -> None:
    draw = np.random.default_rng(0)
    scores_NK, dense = draw.normal(size=(6, 3)), draw.normal(size=(2, 4, 5, 5))
    assert top1(scores_NK, scores_NK.argmax(1)) == 1
    assert top1(dense, dense.argmax(1)) == 1
    assert top1(dense, dense.argmax(3)) == 1
    for outputs, targets in ((scores_NK, draw.normal(size=6)), (dense, np.zeros(2, int)), (dense, dense)):
        with pytest.raises(QuantizeError, match="labels_metric"):
            top1(outputs, targets)
    assert agreement(scores_NK + 5, scores_NK) == 1
    assert agreement(dense, dense) == 1
    assert agreement(dense.mean() + 0 * dense, dense) == pytest.approx(0)


def test_a_network_that_does_not_classify_is_held_to_its_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)).eval()
    data = [torch.randn(16, 1, 8, 8) for _ in range(2)]
    done = quantize(
        model,
        data,
        QuantizeConfig(max_drop=0.05),
        out=tmp_path / "a.onnx",
        example_inputs=data[0],
        time_it=False,
    )
    assert done.metric_fp32 == pytest.approx(1)
    assert done.metric_int8 is not None
    assert 0.95 <= done.metric_int8 < 1
    with pytest.raises(QuantizeError, match="labels_metric"):
        quantize(
            model,
            [(x, x) for x in data],
            QuantizeConfig(max_drop=0.05),
            out=tmp_path / "b.onnx",
            example_inputs=data[0],
            time_it=False,
        )


@pytest.mark.parametrize("mode", ["static", "weight_only"])
def test_files_that_were_there_stay_until_new_ones_are_checked(
    mode: Any, vgg_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt, or a file that is refused, leaves neither the new half nor takes the old file away."""
    config = QuantizeConfig(mode=mode, rounding="nearest")
    quantize(vgg_file, batches(2), config, out=tmp_path / "m.onnx", time_it=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"m.onnx", "m.safetensors"}

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    for module in ("job", "linear_job"):
        monkeypatch.setattr(f"penjing.quantize.{module}.check_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(vgg_file, batches(3), config, out=tmp_path / "m.onnx", time_it=False, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_is_not_replaced_by_a_file(vgg_file: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(QuantizeError, match="a folder has this name"):
        quantize(vgg_file, batches(), out=tmp_path / "m.onnx")


def test_a_drop_of_exactly_what_is_allowed_holds(vgg_file: Path, tmp_path: Path) -> None:
    """Not off by the rounding of a difference: 0.93 - 0.92 is 0.010000000000000009."""
    values = iter((0.93, 0.92))
    done = quantize(
        vgg_file,
        [(x, np.zeros(len(x), int)) for x in batches(2)],
        QuantizeConfig(max_drop=0.01, rounding="nearest"),
        out=tmp_path / "m.onnx",
        labels_metric=lambda outputs, targets: next(values),
        time_it=False,
    )
    assert (done.metric_fp32, done.metric_int8, done.num_quantized) == (0.93, 0.92, 4)


def test_loops_keep_what_they_give(tmp_path: Path) -> None:
    """A value from outside may leave a loop only through an Identity of its own (an EmbeddingBag's does)."""
    torch.manual_seed(0)
    bag = nn.Sequential(
        nn.EmbeddingBag(40, 24), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3), nn.Identity()
    )
    data = [torch.randint(0, 40, (8, 6)) for _ in range(3)]
    made = quantize(bag.eval(), data, out=tmp_path / "bag.onnx", example_inputs=data[0], time_it=False)
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: data[0].numpy()})[0]
    with torch.no_grad():
        wanted = bag(data[0])
    assert float((torch.from_numpy(found) - wanted).norm() / wanted.norm()) < 0.03


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_file_that_is_not_smaller_says_so(mode: Any, tmp_path: Path) -> None:
    data = batches(shape=(8,))
    for width, told in ((4, True), (512, False)):
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width))
        result = quantize(model, data, QuantizeConfig(mode=mode), out=tmp_path / "m.onnx", time_it=False)
        assert (result.size_bytes >= result.fp32_bytes) == told
        assert any("not smaller than the fp32 one" in note for note in result.notes) == told


@pytest.mark.parametrize(
    ("asked", "narrow", "remedy"),
    [
        ("off", True, "Set reduce_range to 'auto', 'pairs' or 'full': it is off"),
        ("off", False, r"Report this model: .*'off' here"),
        ("auto", True, r"Report this model: .*'pairs' here"),
    ],
)
def test_kernels_that_disagree_say_what_to_do(
    asked: Any, narrow: bool, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "sums_pairs_in_16_bits", lambda: narrow)
    monkeypatch.setattr(
        job, "check_file", lambda *args: FileCheck(sqnr=10, simulated=40, agreement=10, samples=4)
    )
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(QuantizeError, match=remedy):
        quantize(model, batches(shape=(8,)), QuantizeConfig(reduce_range=asked), out=tmp_path / "m.onnx")


def test_a_layer_to_ignore_in_a_network_without_layers(tmp_path: Path) -> None:
    config = QuantizeConfig(ignore=("head",))
    with pytest.raises(QuantizeError, match=r"called 'head'.*Leave it out; the network has no layers"):
        quantize(nn.ReLU(), batches(), config, out=tmp_path / "m.onnx")
