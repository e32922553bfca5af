from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from nets import Block, Residual, Vgg, batches, trained_stats
from torch import nn
from torch.nn import functional

from penjing.errors import QuantizeError, RecoverError
from penjing.export.onnx import export_onnx
from penjing.models.onnx_door import OnnxModel
from penjing.prune import prune
from penjing.quantize import QuantizeConfig, load_quantized, quantize, quantized_student
from penjing.quantize.cpu import sums_pairs_in_16_bits
from penjing.quantize.emit import emit
from penjing.quantize.fake import fake_activation, fake_weight
from penjing.quantize.scheme import LEVELS, ActivationParams, fake_quantize
from penjing.quantize.weights import as_rows, from_rows, round_rows
from penjing.recover import RecoverConfig, recover

CASES: list[tuple[type[nn.Module], tuple[int, ...]]] = [
    (Vgg, (3, 16, 16)),
    (Residual, (3, 16, 16)),
    (Block, (5, 24)),
]


def simulated(path: Path, x: np.ndarray) -> np.ndarray:
    """The file, op by op in float."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def db(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(found - wanted).sum(), 1e-30)))


def build(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return trained_stats(make()) if make is Vgg else make().eval()


@pytest.mark.parametrize("zero", [0, 93, 255])
def test_fake_activation_is_the_file_arithmetic(zero: int) -> None:
    x = torch.randn(4, 50, dtype=torch.float32) * 3
    found = fake_activation(x, torch.tensor(0.03), zero)
    wanted = fake_quantize(x.numpy(), ActivationParams(float(np.float32(0.03)), zero))
    assert np.allclose(found.numpy(), wanted, atol=1e-6)


def test_gradients_are_those_of_lsq() -> None:
    x = torch.tensor([[-5.0, -0.34, 0.02, 0.26, 7.0]], requires_grad=True)
    step = torch.tensor(0.1, requires_grad=True)
    torch.autograd.backward(fake_activation(x, step, 10, top=20).sum())  # levels -10 to 10
    assert x.grad is not None
    assert step.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]
    slopes = [-10.0, -3 + 3.4, 0 - 0.2, 3 - 2.6, 10.0]
    assert float(step.grad) == pytest.approx(sum(slopes) / np.sqrt(5 * 10), abs=1e-5)


@pytest.mark.parametrize("guard", ["off", "pairs", "full"])
def test_fake_weight_has_the_levels_of_the_file(guard: Any) -> None:
    w = torch.randn(6, 5, 3, 3)
    step = w.abs().amax(dim=(1, 2, 3)) / 100
    levels = (fake_weight(w, step, 0, guard, 127) / step.reshape(-1, 1, 1, 1)).round().to(torch.int8)
    wanted = from_rows(round_rows(as_rows(w.numpy(), 0), step.numpy(), guard), tuple(w.shape), 0)
    assert np.array_equal(levels.numpy(), wanted)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_an_untrained_student_is_the_post_training_file(
    make: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model, data = build(make), batches(shape=shape)
    quantize(model, data, out=tmp_path / "ptq.onnx", time_it=False)
    student = quantized_student(model, data)
    x = batches(1, 16, shape=shape, seed=9)[0]
    with torch.no_grad():
        found = student(torch.from_numpy(x)).numpy()
    assert db(simulated(tmp_path / "ptq.onnx", x), found) > 40


def test_training_recovers_and_the_file_is_what_was_trained(tmp_path: Path) -> None:
    model, data = build(Vgg), batches(32)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n == "classifier.4.weight").mul_(20.0)
    coarse = QuantizeConfig(
        weight_bits=3, weights="absmax", rounding="nearest", bias_correction=False, equalize=False
    )
    student = quantized_student(model, data[:8], coarse)
    config = RecoverConfig(epochs=4, lr=3e-3, optimizer="sgd", weight_decay=0.0, grad_clip=1.0)
    trained = recover(student, model, [torch.from_numpy(x) for x in data], config)
    x = batches(1, 64, seed=9)[0]
    with torch.no_grad():
        wanted, before, after = (m(torch.from_numpy(x)).numpy() for m in (model, student, trained.model))
    assert db(wanted, after) > db(wanted, before) + 1.0
    made = quantize(trained.model, data[:8], out=tmp_path / "qat.onnx", time_it=False)
    assert db(after, simulated(tmp_path / "qat.onnx", x)) > 35
    assert made.num_quantized == 4
    levels = load_quantized(made.weights_path)["features.0.weight"][0]
    assert len(np.unique(levels)) <= 7


@pytest.mark.parametrize("bits", [2, 4])
def test_biases_that_training_moved_are_rounded_as_the_file_rounds_them(bits: int, tmp_path: Path) -> None:
    """The fewer bits a weight has, the larger are the steps of the bias."""
    model, data = build(Vgg), batches()
    student = quantized_student(model, data, QuantizeConfig(weight_bits=bits))
    biases = [bias for out in student.frame.layers if (bias := student.layer_parameters(out)[1]) is not None]
    assert len(biases) == 4
    torch.manual_seed(5)
    with torch.no_grad():
        for bias in biases:
            bias.add_(0.05 * torch.randn_like(bias))
    x = batches(1, 64, seed=9)[0]
    found = student(torch.from_numpy(x))
    torch.autograd.backward(found.square().sum())
    assert all(bias.grad is not None and bool(bias.grad.any()) for bias in biases)
    made = quantize(student, data, out=tmp_path / "m.onnx", time_it=False)
    assert db(found.detach().numpy(), simulated(made.path, x)) > 55


def test_adamw_moves_steps_by_shares_of_their_size() -> None:
    student = quantized_student(build(Vgg), batches(2))
    data = [torch.from_numpy(x) for x in batches(8)]
    config = RecoverConfig(epochs=1, lr=1e-3, optimizer="adamw", schedule="constant")
    trained = recover(student, build(Vgg), data, config)
    for before, after in zip(student.scale_parameters, trained.model.scale_parameters, strict=True):  # type: ignore[arg-type]
        moved = (after - before).detach().abs() / before.detach().mean()
        assert 0 < float(moved.max()) < 1.1e-3 * len(data)
    assert trained.history[-1]["lr"] == pytest.approx(1e-3)


def test_a_student_refuses_new_options_and_broken_weights(tmp_path: Path) -> None:
    model, data = build(Vgg), batches()
    student = quantized_student(model, data)
    with pytest.raises(QuantizeError, match="brings its own options"):
        quantize(student, data, QuantizeConfig(), out=tmp_path / "a.onnx")
    with torch.no_grad():
        student.weight_steps[0][0] = float("nan")
    with pytest.raises(QuantizeError, match="not finite"):
        quantize(student, data, out=tmp_path / "a.onnx")


def test_steps_that_training_led_astray_come_back_and_the_file_follows(tmp_path: Path) -> None:
    """Through zero, and past the bound of a ReLU6 that 8 bits stand in for."""
    torch.manual_seed(0)
    model, data = Residual().eval(), batches(2)
    student = quantized_student(model, data)
    assert len(student.frame.tops) == 2
    steps = student.rounded_tensors(student.frame.params.keys())
    next(iter(steps.values())).data.neg_()
    for name in student.frame.tops:
        steps[name].data.mul_(1000.0)
    for step in student.weight_steps:
        step.data[0].neg_()
    x = batches(1, 16, seed=9)[0]
    found = student(torch.from_numpy(x))
    torch.autograd.backward(found.square().sum())
    for name, step in steps.items():
        start, top = student.frame.params[name].scale, student.frame.tops.get(name, float("inf"))
        assert start / 20 < float(step.detach()) <= top / LEVELS * (1 + 1e-6)
    assert all(bool((step > 0).all()) for step in student.weight_steps)
    assert all(step.grad is not None and bool(step.grad.any()) for step in steps.values())
    made = quantize(student, data, out=tmp_path / "m.onnx", time_it=False)
    assert db(found.detach().numpy(), simulated(made.path, x)) > 40


def test_a_clip_is_kept_where_8_bits_reach_past_its_bound() -> None:
    torch.manual_seed(0)
    student = quantized_student(Residual().eval(), batches(2))
    model, placement = student.frame.model, student.frame.placement
    (name, top), *_ = student.frame.tops.items()
    counts = []
    for share in (1.0, 1.2):
        params = {**student.frame.params, name: ActivationParams(share * top / LEVELS, 0)}
        counts.append(sum(node.op_type == "Clip" for node in emit(model, placement, params, {}).graph))
    assert counts[1] == counts[0] + 1


def test_what_needs_a_trace_says_that_it_comes_before() -> None:
    data = [(torch.randn(4, 6), torch.randint(0, 3, (4,)))]
    student = quantized_student(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), data)
    config = RecoverConfig.parse({"epochs": 1, "losses": ["ce"], "regularize": ["group_lasso"]})
    with pytest.raises(QuantizeError, match="Prune or regularize before"):
        recover(student, None, data, config)


def test_features_of_layers_that_only_hold_weights_are_refused() -> None:
    model, data = build(Vgg), [torch.from_numpy(x) for x in batches(2)]
    student = quantized_student(model, data)
    config = RecoverConfig.parse({"epochs": 1, "losses": {"kd": 1, "mse": {"layers": ["features.0"]}}})
    with pytest.raises(RecoverError, match="did not call this layer"):
        recover(student, model, data, config)


def test_a_plan_lines_up_no_blocks_of_a_network_in_int8_training() -> None:
    """Its modules have the names of blocks, but are never called: default losses asked them for features."""
    unit = (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    blocks = [nn.Sequential(*copy.deepcopy(unit)) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(*blocks), nn.Flatten(), nn.Linear(512, 10))
    data = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    notes: list[str] = []
    pruned = prune(model, data[0], ratio=0.25)
    recover(
        quantized_student(pruned.model, data),
        model,
        data,
        {"epochs": 1},
        plan=pruned.plan,
        listen=lambda event: notes.append(event.message),
    )
    assert len([note for note in notes if "blocks are not held" in note]) == 1


def test_a_network_in_int8_training_is_not_compiled_and_this_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of four steps went on for minutes."""
    monkeypatch.setattr(torch, "compile", lambda model: pytest.fail("it was compiled"))
    model, data = (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        [torch.randn(8, 6) for _ in "abc"],
    )
    notes: list[str] = []
    config = RecoverConfig(epochs=1, compile=True)
    student = quantized_student(model, data)
    recover(student, model, data, config, listen=lambda event: notes.append(event.message))
    assert len([note for note in notes if note.startswith("not compiled")]) == 1


@pytest.mark.skipif(not sums_pairs_in_16_bits(), reason="only sums of 16 bits overflow")
def test_kernels_that_overflow_are_found_however_far_training_led(tmp_path: Path) -> None:
    """Far from the network before, overflowing kernels were as near to it as the simulation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    data = [torch.rand(16, 64) for _ in range(6)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    for guard in ("off", "pairs"):
        student = quantized_student(model, data, {"reduce_range": guard, "equalize": False})
        with torch.no_grad():
            for part in ("4.weight", "4.bias"):
                student.get_parameter(part).neg_()
        if guard == "off":
            with pytest.raises(QuantizeError, match="int8 sums of this processor overflow"):
                quantize(student, data, out=tmp_path / "m.onnx", time_it=False)
        else:
            made = quantize(student, data, out=tmp_path / "m.onnx", time_it=False)
            assert made.agreement_db > 35
            assert any("before training in int8" in note for note in made.notes)
            assert not any("max_drop" in note for note in made.notes)


class Preactivation(nn.Module):
    """Batch norms that no layer comes before, so that they stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.body(torch.relu(self.norm(x)))
        out: torch.Tensor = self.head(torch.relu(self.last(x)).mean(dim=(2, 3)))
        return out


def test_batch_norms_that_stay_are_written_as_they_were_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = trained_stats(Preactivation()), batches(8)
    student = quantized_student(model, data)
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    torch_data = [torch.from_numpy(x) for x in data]
    trained = recover(student, model, torch_data, RecoverConfig(epochs=2, lr=1e-2)).model
    moved = [n for n, b in trained.named_buffers() if b.is_floating_point() and not torch.equal(b, before[n])]
    assert moved
    x = batches(1, 64, seed=9)[0]
    with torch.no_grad():
        wanted = trained(torch.from_numpy(x)).numpy()
    quantize(trained, data, out=tmp_path / "qat.onnx", time_it=False)
    assert db(wanted, simulated(tmp_path / "qat.onnx", x)) > 35
    options = QuantizeConfig(rounding="blocks", block_steps=10)
    assert quantize(model, data, options, out=tmp_path / "blocks.onnx", time_it=False).sqnr_db > 20


class Tokens(nn.Module):
    """A table of embeddings, a causal product, a layer norm, linears, a head that may share the table."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(80, 32), nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 80, bias=not tied)
        self.register_buffer("mask", torch.full((12, 12), float("-inf")).triu(1))
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        x = x + (x @ x.mT / 32 + self.mask).softmax(-1) @ x
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        out: torch.Tensor = self.head(x)
        return out


class Reading(nn.Module):
    """A table of embeddings before an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(80, 32), nn.LSTM(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.lstm(self.table(tokens))[0])
        return out


@pytest.mark.parametrize(
    ("make", "bits", "least"),
    [
        (lambda: Tokens(tied=False), 8, 60),
        (lambda: Tokens(tied=False), 4, 60),
        (lambda: Tokens(tied=True), 4, 60),
        (Reading, 8, 35),  # an LSTM's own activations are rounded as they come, which no student does
        (Reading, 4, 30),
    ],
    ids=["tokens", "tokens in 4 bits", "tied", "lstm", "lstm in 4 bits"],
)
def test_tables_and_recurrent_weights_are_rounded_while_training(
    make: Any, bits: int, least: float, tmp_path: Path
) -> None:
    """They were trained in float, and rounded when the file was written."""
    torch.manual_seed(0)
    model = make().eval()
    data = [torch.randint(0, 80, (8, 12)) for _ in range(8)]
    student = quantized_student(model, data, QuantizeConfig(weight_bits=bits))
    config = RecoverConfig(epochs=2, lr=1e-3, optimizer="adamw", ema=0.8)
    trained = recover(student, model, data, config).model
    x = torch.randint(0, 80, (16, 12))
    with torch.no_grad():
        before, wanted = student(x).numpy(), trained(x).numpy()
    assert db(before, wanted) < 60
    quantize(model, data, QuantizeConfig(weight_bits=bits), out=tmp_path / "ptq.onnx", time_it=False)
    quantize(trained, iter(data), out=tmp_path / "qat.onnx", time_it=False)
    assert db(simulated(tmp_path / "ptq.onnx", x.numpy()), before) > least
    assert db(simulated(tmp_path / "qat.onnx", x.numpy()), wanted) > least


def test_the_source_of_a_module_is_not_replaced(tmp_path: Path) -> None:
    """A student does not know the file that it was read from; what quantize did not write, it leaves."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), [torch.randn(8, 6)]
    source = tmp_path / "model.onnx"
    export_onnx(model, source, data[0])
    before = source.read_bytes()
    for module in (quantized_student(source, data), OnnxModel(source)):
        with pytest.raises(QuantizeError, match="would replace a float network"):
            quantize(module, data, out=source, time_it=False)
    assert source.read_bytes() == before
    for _ in range(2):  # its own files it writes anew
        made = quantize(
            quantized_student(source, data), data, out=tmp_path / "model.int8.onnx", time_it=False
        )
        made.weights_path.unlink()  # as after an interruption between the two


@pytest.mark.parametrize("all_frozen", [False, True])
def test_layers_that_do_not_train_do_not_train_in_int8(all_frozen: bool) -> None:
    """Only of networks that train at all: one that is merely at hand is often frozen as a whole."""
    model, data = build(Vgg), batches(2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (all_frozen or name.startswith("features")))
    student = quantized_student(model, data, QuantizeConfig(rounding="nearest", equalize=False))
    config = RecoverConfig(epochs=1, lr=1e-3, optimizer="adamw")
    trained = recover(student, build(Vgg), [torch.from_numpy(x) for x in data], config).model
    now = dict(trained.named_parameters())
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, now[name])}
    assert any(name.startswith("classifier") for name in moved)
    assert any(name.startswith("weight_steps") for name in moved)
    assert any(name.startswith("features") for name in moved) == all_frozen, moved
