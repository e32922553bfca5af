"""Layers that read and give floats: LSTMs multiply in int8, recurrent weights and tables are stored in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from nets import batches
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from penjing.errors import QuantizeError
from penjing.export.onnx import export_onnx
from penjing.quantize import QuantizeConfig, load_quantized, quantize, read_header

SHAPE = (7, 48)
"""Steps and features."""


class Tagger(nn.Module):
    """A linear layer on every step, recurrent ones, and a head on the last step.

    Large enough that its weights are put together in the file, not when it is written.
    """

    def __init__(self, cell: Callable[..., nn.Module] = nn.LSTM, embed: bool = True, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 48) if embed else nn.Identity()
        self.cell = cell(48, 64, batch_first=True, **options)
        self.head = nn.Linear(128 if options.get("bidirectional") else 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.cell(torch.relu(self.embed(x)))[0][:, -1])
        return out


def tagger(cell: Callable[..., nn.Module] = nn.LSTM, **options: Any) -> Tagger:
    torch.manual_seed(0)
    return Tagger(cell, **options).eval()


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=["one", "both ways"])
def test_lstms_multiply_in_int8(mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = tagger(**options)
    fp32 = export_onnx(net, tmp_path / "fp32.onnx", torch.zeros(2, *SHAPE))
    made = quantize(fp32, batches(3, shape=SHAPE), {"mode": mode}, out=tmp_path / "q.onnx", time_it=False)
    count = options.get("num_layers", 1)
    assert ops(made.path).count("DynamicQuantizeLSTM") == count
    assert "LSTM" not in ops(made.path)
    assert [row.quantized for row in made.layers if row.op == "LSTM"] == [True] * count
    assert made.num_quantized == 2 + count
    x = batches(1, 16, SHAPE, seed=7)[0]
    wanted = net(torch.from_numpy(x)).detach().numpy()
    found = run(made.path, x)
    assert 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()) > 30
    large = [t for t in onnx.load(made.path).graph.initializer if np.prod(t.dims) > 2048]
    assert {t.data_type for t in large} == {TensorProto.INT8}


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_the_weights_file_holds_the_network_s_own_weights(
    cell: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """By the names they have in torch; the network with them answers as the written file does."""
    net = tagger(cell, bidirectional=True)
    config = QuantizeConfig(mode="weight_only")
    made = quantize(net, batches(3, shape=SHAPE), config, out=tmp_path / "q.onnx", time_it=False)
    assert made.num_quantized == 3
    stored = load_quantized(made.weights_path)
    named = {row["weight"] for row in read_header(made.weights_path)["layers"]}
    mine = {name: p for name, p in net.cell.named_parameters() if "weight" in name}
    assert {f"cell.{name}" for name in mine} < named
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(torch.from_numpy(stored[f"cell.{name}"]))
        net.head.weight.copy_(torch.from_numpy(stored["head.weight"]))
        (turned,) = (array for name, array in stored.items() if array.shape == (48, 48) and name in named)
        net.state_dict()["embed.weight"].copy_(torch.from_numpy(turned))
        x = batches(1, 16, SHAPE, seed=7)[0]
        wanted = net(torch.from_numpy(x)).numpy()
    # ONNX Runtime's kernels for weights of few bits round a linear layer's activations on their way
    np.testing.assert_allclose(run(made.path, x), wanted, atol=2e-2 * np.abs(wanted).max())


def test_static_and_dynamic_hold_the_same_weights(tmp_path: Path) -> None:
    """So the weights of an LSTM in the static file are there by name, too."""
    net, data = tagger(), batches(3, shape=SHAPE)
    files = [
        quantize(net, data, {"mode": mode}, out=tmp_path / f"{mode}.onnx", time_it=False).weights_path
        for mode in ("static", "dynamic")
    ]
    static, dynamic = map(load_quantized, files)
    for name in ("cell.weight_ih_l0", "cell.weight_hh_l0"):
        np.testing.assert_array_equal(static[name], dynamic[name])
        exact = net.state_dict()[name].numpy()
        assert np.abs(static[name] - exact).max() < np.abs(exact).max() / 60  # 7 bits where pairs need room


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("option", [{"ignore": ["cell"]}, {"ops": ["Conv", "Gemm", "MatMul"]}])
def test_lstms_can_stay_in_float(option: dict[str, Any], mode: str, tmp_path: Path) -> None:
    option = option | {"mode": mode}
    made = quantize(tagger(), batches(3, shape=SHAPE), option, out=tmp_path / "q.onnx", time_it=False)
    assert [row.name for row in made.layers if row.quantized] == ["embed", "head"]
    assert "LSTM" in ops(made.path)
    (row,) = [row for row in made.layers if row.op == "LSTM"]
    assert not row.quantized
    assert row.why


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_linear_modes_change_only_the_ops_that_are_named(mode: str, tmp_path: Path) -> None:
    data = batches(2, shape=SHAPE)
    option = {"mode": mode, "ops": ["LSTM"]}
    made = quantize(tagger(), data, option, out=tmp_path / "q.onnx", time_it=False)
    assert [row.op for row in made.layers if row.quantized] == ["LSTM"]
    with pytest.raises(QuantizeError, match=r"LSTM is not among the ops to quantize.*Name more ops"):
        quantize(tagger(), data, option | {"ops": ["Conv"]}, out=tmp_path / "r.onnx", time_it=False)


def test_lstms_go_back_to_float_where_too_much_is_lost(tmp_path: Path) -> None:
    """They are among the layers whose share of the error is measured, and that a bound takes back."""

    def close(outputs: np.ndarray, targets: np.ndarray) -> float:
        return float(np.mean(outputs.argmax(-1) == targets))

    net = tagger()
    with torch.no_grad():
        net.state_dict()["cell.weight_hh_l0"][3] *= 300  # coarse steps of a row that all others feel
    data = batches(4, shape=SHAPE)
    made = quantize(net, data, {"sensitivity": True}, out=tmp_path / "s.onnx", time_it=False)
    (row,) = [row for row in made.layers if row.op == "LSTM"]
    assert row.gain_db is not None
    with torch.no_grad():
        labelled = [(ids, net(torch.as_tensor(ids)).argmax(-1)) for ids in data]
    bound = quantize(
        net, labelled, {"max_drop": 0.0}, labels_metric=close, out=tmp_path / "b.onnx", time_it=False
    )
    assert bound.metric_int8 is not None
    assert bound.metric_fp32 is not None
    assert bound.metric_int8 >= bound.metric_fp32


@pytest.mark.parametrize("factor", [None, -0.5, 2.0])
def test_weights_stored_as_the_op_has_them(factor: float | None, tmp_path: Path) -> None:
    """Other exporters write W and R themselves; a network of an LSTM alone is quantized, too. What is made of
    weights otherwise than by moving rows is told under its own name.
    """
    rng = np.random.default_rng(0)
    w, r = (rng.normal(0, 0.2, (2, 32, k)).astype(np.float32) for k in (12, 8))
    nodes = [helper.make_node("LSTM", ["x", "W", "R"], ["y", "h"], hidden_size=8, direction="bidirectional")]
    weights = [numpy_helper.from_array(w, "W"), numpy_helper.from_array(r, "R")]
    if factor is not None:
        nodes = [helper.make_node("Mul", ["W0", "factor"], ["W"]), *nodes]
        scaled = w / np.float32(factor)
        weights = [numpy_helper.from_array(scaled, "W0"), weights[1]]
        weights.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, "batch", 12])],
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, "batch", 8])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    data = [rng.normal(size=(5, 1, 12)).astype(np.float32) for _ in range(8)]
    made = quantize(tmp_path / "m.onnx", data, {"mode": "dynamic"}, out=tmp_path / "q.onnx", time_it=False)
    assert ops(made.path) == ["DynamicQuantizeLSTM"]
    assert made.sqnr_db > 25
    stored = load_quantized(made.weights_path)
    assert np.abs(stored["W"].reshape(w.shape) - w).max() < 0.01
    with pytest.raises(QuantizeError, match="quantized already"):
        quantize(made.path, data, out=tmp_path / "again.onnx")


class Recommender(nn.Module):
    """A table that is read in two places, and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.kinds = nn.Embedding(500, 16), nn.Embedding(7, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, seen: torch.Tensor, wanted: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        x = self.items(seen).mean(dim=1) * self.items(wanted) + self.kinds(kind)
        out: torch.Tensor = self.head(x)
        return out


def recommender() -> Recommender:
    """Every row of the large table has a step of its own."""
    torch.manual_seed(0)
    net = Recommender().eval()
    with torch.no_grad():
        net.items.weight *= torch.logspace(-2, 2, 500)[:, None]
    return net


def visits(count: int, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    seen, wanted = (torch.randint(0, 500, size, generator=g) for size in ((count, 9), (count,)))
    return {"seen": seen, "wanted": wanted, "kind": torch.randint(0, 7, (count,), generator=g)}


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_tables_are_stored_in_8_bits(mode: str, tmp_path: Path) -> None:
    """Once, however often they are read, and to half a step of each row."""
    net, data = recommender(), [visits(16, seed) for seed in range(4)]
    made = quantize(net, data, {"mode": mode}, out=tmp_path / "q.onnx", time_it=False)
    kinds = [(list(t.dims), t.data_type) for t in onnx.load(made.path).graph.initializer]
    assert [kind for dims, kind in kinds if dims == [500, 16]] == [TensorProto.INT8]
    assert [kind for dims, kind in kinds if dims == [7, 16]] == [TensorProto.FLOAT]
    assert made.sqnr_db > 25
    stored, exact = load_quantized(made.weights_path)["items.weight"], net.items.weight.detach().numpy()
    assert (np.abs(stored - exact) <= 2 * np.abs(exact).max(axis=1, keepdims=True) / 127).all()


def test_tables_leave_no_room_for_sums(tmp_path: Path) -> None:
    """Nothing multiplies them in 8 bits, so they are the same on every processor."""
    net, data = recommender(), [visits(16, seed) for seed in range(2)]
    with torch.no_grad():
        net.items.weight.abs_()  # neighbours of one sign are what overflows
    stored = []
    for guard in ("off", "pairs"):
        option = {"mode": "dynamic", "reduce_range": guard, "rounding": "nearest"}
        made = quantize(net, data, option, out=tmp_path / f"{guard}.onnx", time_it=False)
        stored.append(load_quantized(made.weights_path)["items.weight"])
    np.testing.assert_array_equal(stored[0], stored[1])


def test_the_file_looks_up_what_is_stored(tmp_path: Path) -> None:
    net, data = recommender(), [visits(16, seed) for seed in range(4)]
    options = {"mode": "dynamic", "ignore": ["head"]}
    made = quantize(net, data, options, out=tmp_path / "q.onnx", time_it=False)
    seen = visits(32, 9)
    with torch.no_grad():
        net.items.weight.copy_(torch.from_numpy(load_quantized(made.weights_path)["items.weight"]))
        wanted = net(**seen).numpy()
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: x.numpy() for name, x in seen.items()})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_tables_can_stay_in_float(tmp_path: Path) -> None:
    data = [visits(16, seed) for seed in range(4)]
    made = quantize(recommender(), data, {"ignore": ["items*"]}, out=tmp_path / "q.onnx", time_it=False)
    assert [row.why for row in made.layers if row.op == "Gather"] == ["ignored by the user"] * 2
    assert "items.weight" in {t.name for t in onnx.load(made.path).graph.initializer}


class Tied(nn.Module):
    """A head whose weights are the table of words, as most language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(400, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 400, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.inner(self.words(words))))
        return out


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_a_head_tied_to_the_table_is_in_8_bits_too(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [torch.randint(0, 400, (8, 9), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    made = quantize(Tied().eval(), data, {"mode": mode}, out=tmp_path / "q.onnx", time_it=False)
    assert [row.quantized for row in made.layers] == [True] * 3
    assert made.sqnr_db > 30
    large = [t for t in onnx.load(made.path).graph.initializer if np.prod(t.dims) > 2048]
    assert [t.data_type for t in large] == [TensorProto.INT8] * 2


class Answering(nn.Module):
    """Two LSTMs of which the last states alone are read, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 48)
        self.first, self.second = (nn.LSTM(48, 64, batch_first=True) for _ in range(2))
        self.down, self.head = nn.Linear(128, 48), nn.Linear(48, 300, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.words(words)
        states = [cell(x)[1][0][-1] for cell in (self.first, self.second)]
        out: torch.Tensor = self.head(self.down(torch.cat(states, dim=-1)))
        return out


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_layers_whose_first_output_nobody_reads_keep_their_own_weights(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [torch.randint(0, 300, (8, 9), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    made = quantize(Answering().eval(), data, {"mode": mode}, out=tmp_path / "q.onnx", time_it=False)
    assert made.num_quantized == 5
    assert made.sqnr_db > 30
    stored = load_quantized(made.weights_path)
    assert {f"{cell}.weight_hh_l0" for cell in ("first", "second")} < stored.keys()
