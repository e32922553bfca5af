"""Every format says what the model says; files that do not are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from export_models import needs_tensorflow, vgg_like
from onnx import numpy_helper
from torch import nn

import penjing.export as pe
from penjing.errors import ExportError, VerifyError
from penjing.events import Event
from penjing.export.base import Layout, get_format
from penjing.quantize import quantize

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
DATA = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pe.export_onnx(vgg_like(), tmp_path_factory.mktemp("onnx") / "model.onnx", X)


@pytest.fixture
def onnx_file(exported_once: Path, tmp_path: Path) -> Path:
    """The small net's file, a copy that a test may damage."""
    return Path(shutil.copy(exported_once, tmp_path / "model.onnx"))


def test_onnx_gives_what_the_model_gives_at_any_batch_size(small_net: nn.Module, onnx_file: Path) -> None:
    runner = pe.OnnxRunner(onnx_file, threads=1)
    small_net.eval()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 16, 16)
        expected = small_net(x).detach().numpy()
        np.testing.assert_allclose(runner.run({"input": x.numpy()})[0], expected, rtol=1e-5, atol=1e-5)


def test_exporting_changes_nothing_in_the_model(small_net: nn.Module, tmp_path: Path) -> None:
    small_net.train()
    next(small_net.children()).eval()
    flags = [m.training for m in small_net.modules()]
    before = {k: v.clone() for k, v in small_net.state_dict().items()}
    pe.export_onnx(small_net, tmp_path / "model.onnx", X)
    assert [m.training for m in small_net.modules()] == flags
    assert all(torch.equal(v, before[k]) for k, v in small_net.state_dict().items())


def test_batch_norm_is_folded_and_names_are_clean(onnx_file: Path) -> None:
    model = onnx.load(str(onnx_file))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["output"]
    layers = {p.value for node in model.graph.node for p in node.metadata_props if p.key == "layer"}
    assert "0" in layers
    assert str(Path(__file__).parent).encode() not in onnx_file.read_bytes()


def test_named_inputs_and_outputs_are_kept(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"total": left + right, "gap": left - right}

    example = {"left": torch.randn(2, 3), "right": torch.randn(2, 3)}
    runner = pe.OnnxRunner(pe.export_onnx(Pair(), tmp_path / "m.onnx", example))
    assert [i.name for i in runner.inputs] == ["left", "right"]
    assert runner.outputs == ("total", "gap")
    result = pe.verify(runner, Pair(), example)
    assert result.relative < 1e-6


@pytest.mark.parametrize("leading", [(2,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_attention_has_any_number_of_leading_dimensions(
    leading: tuple[int, ...], mask: str, tmp_path: Path
) -> None:
    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = {
                "bool": torch.ones(5, 5).tril(1).bool(),
                "float": torch.linspace(-2, 2, 25).reshape(5, 5),
            }
            return nn.functional.scaled_dot_product_attention(
                x, 2 * x, x + 1, attn_mask=given.get(mask), is_causal=mask == "causal"
            )

    x = torch.randn(*leading, 5, 8)
    path = pe.export_onnx(Attend(), tmp_path / "m.onnx", x)
    assert pe.verify(path, Attend(), x, batch_sizes=(1, 4)).relative < 1e-5


def test_recurrent_layers_can_be_trained_after_export(tmp_path: Path) -> None:
    model = nn.LSTM(4, 3, batch_first=True)
    pe.export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 5, 4))
    model(torch.randn(2, 5, 4))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.tf
@needs_tensorflow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_of_any_batch_run_in_litert(kind: type[nn.LSTM | nn.GRU], tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over = kind(4, 3, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.over(x)[0]
            return y[:, -1]

    made = pe.export(Last(), tmp_path, ["litert"], example_inputs=torch.randn(2, 5, 4), batch_sizes=(1, 3))
    assert made["litert"].verification.relative < 1e-5


def test_a_model_that_fixes_its_batch_is_refused_or_fixed(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(4, -1) if x.shape[0] == 4 else x.reshape(5, -1)

    with pytest.raises(ExportError, match="batch"):
        pe.export_onnx(Fixed(), tmp_path / "m.onnx", X)
    assert list(tmp_path.iterdir()) == []
    runner = pe.OnnxRunner(pe.export_onnx(Fixed(), tmp_path / "m.onnx", X, dynamic_batch="auto"))
    assert runner.inputs[0].shape == (4, 3, 16, 16)


@needs_tensorflow
def test_the_largest_token_is_found_in_litert(tmp_path: Path) -> None:
    class Last(nn.Module):
        """Reads each text at its end, the token with the largest number, as CLIP does."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, text: torch.Tensor) -> torch.Tensor:
            ends: torch.Tensor = self.tokens(text)[torch.arange(text.shape[0]), text.argmax(-1)]
            return self.out(ends)  # type: ignore[no-any-return]

    text = torch.tensor([[1, 8, 0, 0], [3, 2, 8, 8]])
    assert pe.export(Last(), tmp_path, ["litert"], example_inputs=text).ok


class Counting(nn.Module):
    """Makes a plain number of its batch, as ``int(windows.shape[0] / count)`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.mix(x).view(int(x.shape[0] / 1), -1)
        return y


@needs_tensorflow
def test_files_whose_batch_the_network_fixes_say_so(tmp_path: Path) -> None:
    made = pe.export(Counting(), tmp_path, ["onnx", "saved_model", "program"], example_inputs=X)
    for file in made.files:
        assert [row.batch for row in file.verification.rows] == [4]
        assert any(re.search(r"batch size is fixed at \S+/test_export\.py:\d+", note) for note in file.notes)
    assert all("every batch has 4 samples" in made[name].notes[0] for name in ("onnx", "saved_model"))
    done = quantize(Counting(), [X], out=tmp_path / "m.int8.onnx", time_it=False)
    assert any("every batch has 4 samples" in note for note in done.notes)
    assert not pe.export(nn.Conv2d(3, 4, 1), tmp_path, ["onnx"], example_inputs=X)["onnx"].notes


class Squeezing(nn.Module):
    """Names no dimension to squeeze, so that a batch of one goes, too."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.head, self.dim = nn.Linear(3, 2), dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(x.mean((2, 3), keepdim=True).squeeze())
        return y if self.dim is None else y.log_softmax(self.dim)


@needs_tensorflow
def test_a_batch_of_one_that_the_model_drops_is_named(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"with batch 1 .*drops a batch of one"):
        pe.export(Squeezing(None), tmp_path, ["saved_model"], example_inputs=X)
    assert pe.export(Squeezing(None), tmp_path, ["saved_model"], example_inputs=X, batch_sizes=(2, 3)).ok


def test_batches_on_which_the_model_fails_are_left_out_with_a_note(tmp_path: Path) -> None:
    made = pe.export(Squeezing(1), tmp_path, ["onnx"], example_inputs=X)["onnx"]
    assert [row.batch for row in made.verification.rows] == [3, 8]
    assert any("batch 1, on which the model itself fails: IndexError" in note for note in made.notes)
    with pytest.raises(VerifyError, match="the model itself fails"):
        pe.export(Squeezing(1), tmp_path, ["onnx"], example_inputs=X, batch_sizes=(1,))


class OwnWeights(nn.Module):
    """Each sample is convolved with weights of its own: as many groups as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 2)
        self.weight = nn.Parameter(torch.randn(2, 5 * 3 * 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        weight = self.mix(x.mean((2, 3))).sigmoid() @ self.weight
        y = nn.functional.conv2d(x.view(1, n * c, h, w), weight.view(n * 5, c, 3, 3), padding=1, groups=n)
        return y.view(n, 5, h, w)


def test_a_group_for_each_sample_fixes_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be left free: aten"):
        pe.export_onnx(OwnWeights(), tmp_path / "m.onnx", X)
    made = pe.export(OwnWeights(), tmp_path, ["onnx"], example_inputs=X)
    assert made.ok
    assert pe.OnnxRunner(tmp_path / "model.onnx").inputs[0].shape == (4, 3, 16, 16)


@pytest.mark.tf
@needs_tensorflow
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_every_tensorflow_format_agrees(small_net: nn.Module, tmp_path: Path, layout: Layout) -> None:
    formats = ["onnx", "saved_model", "litert", "litert_int8"]
    if layout == "nchw":
        formats += ["litert_fp16", "litert_dynamic"]
    heard: list[Event] = []
    result = pe.export(
        small_net, tmp_path, formats, example_inputs=X, data=DATA, layout=layout, listen=heard.append
    )
    assert [file.format for file in result.files] == formats
    assert result.ok
    for name in ("onnx", "saved_model", "litert"):
        assert result[name].verification.relative <= 1e-5
        assert [row.batch for row in result[name].verification.rows] == [1, 3, 8]
    assert result["litert_int8"].verification.rows[-1].rms_relative < 0.1
    assert result["litert_int8"].size_bytes < 0.5 * result["litert"].size_bytes
    assert [event.kind for event in heard] == ["start"] + ["progress"] * len(formats) + ["end"]
    runner = pe.open_file(tmp_path / "saved_model")
    assert runner.inputs[0].shape == ((None, 16, 16, 3) if layout == "nhwc" else (None, 3, 16, 16))
    json.dumps(result.to_dict(), allow_nan=False)


SERVE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("penjing", "torch"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Absent())
import numpy as np
file, x = sys.argv[1], np.load(sys.argv[2])
if file.endswith(".onnx"):
    import onnxruntime
    y = onnxruntime.InferenceSession(file).run(["output"], {"input": x})[0]
elif file.endswith(".tflite"):
    import tensorflow as tf
    served = tf.lite.Interpreter(model_path=file).get_signature_runner("serving_default")
    y = served(input=x)["output"]
else:
    import tensorflow as tf
    y = tf.saved_model.load(file).signatures["serving_default"](input=tf.constant(x))["output"].numpy()
assert "penjing" not in sys.modules and "torch" not in sys.modules
np.save(sys.argv[3], y)
"""


@pytest.mark.tf
@needs_tensorflow
def test_every_file_serves_in_its_stock_runtime_alone(small_net: nn.Module, tmp_path: Path) -> None:
    files = pe.export(small_net, tmp_path, ["onnx", "saved_model", "litert"], example_inputs=X).files
    np.save(tmp_path / "x.npy", X.numpy())
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    expected = small_net.eval()(X).detach().numpy()
    for file in files:
        paths = [str(file.path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
        command = [sys.executable, "-I", "-c", SERVE, *paths]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-5)


def _quantized(path: Path, calibration: np.ndarray) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[np.ndarray] = iter([calibration])

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.samples, None)
            return None if sample is None else {"input": sample}

    out = path.with_name("quantized.onnx")
    quantize_static(
        str(path),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # without VNNI the runtime's 8-bit kernels saturate
    )
    return out


def _unfused(path: Path, x: np.ndarray) -> np.ndarray:
    """The quantized graph as written: fused kernels saturate on processors without 8-bit dot products."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


@pytest.mark.tf
@needs_tensorflow
@pytest.mark.filterwarnings("ignore")
def test_a_quantized_file_is_exported_beside_and_keeps_its_integers(
    small_net: nn.Module, onnx_file: Path, tmp_path: Path
) -> None:
    int8 = _quantized(onnx_file, DATA[0].numpy())
    result = pe.export(
        small_net, tmp_path / "out", ["saved_model_int8"], example_inputs=X, data=DATA, int8=int8
    )
    assert [file.format for file in result.files] == ["saved_model_int8", "onnx_int8"]
    a = _unfused(tmp_path / "out" / "model.int8.onnx", X.numpy())
    b = pe.open_file(tmp_path / "out" / "saved_model_int8").run({"input": X.numpy()})[0]
    np.testing.assert_allclose(a, b, rtol=0, atol=1.01 * np.abs(a).max() / 127)
    assert np.mean(np.abs(a - b) < 1e-5) > 0.9
    import tensorflow as tf

    with np.errstate(all="ignore"):
        served = tf.saved_model.load(str(tmp_path / "out" / "saved_model_int8"))
    assert any(v.dtype == tf.int8 for v in served.weights)


def test_verification_names_the_first_op_that_differs(small_net: nn.Module, onnx_file: Path) -> None:
    model = onnx.load(str(onnx_file))
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[0] == 12)
    name = weight.name
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, name))
    onnx.save(model, str(onnx_file))
    with pytest.raises(VerifyError, match=r"Conv .* or Relu .* of layer '6'") as caught:
        pe.verify(onnx_file, small_net, X)
    assert caught.value.layer == str(onnx_file)
    report = pe.verify(onnx_file, small_net, X, raise_on_failure=False)
    assert not report.ok


@pytest.mark.tf
@needs_tensorflow
def test_the_first_op_that_tensorflow_does_otherwise_is_named(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penjing.export import tf_ops

    rule: Callable[[tf_ops.Node], Any] = tf_ops.OPS["MaxPool"]
    monkeypatch.setitem(tf_ops.OPS, "MaxPool", lambda node: tf_ops.Value(plain=rule(node).plain() * 1.01))
    with pytest.raises(VerifyError, match="the first op that differs is MaxPool"):
        pe.export(onnx_file, tmp_path, ["saved_model"], example_inputs=X)


def test_files_already_written_are_verified_by_the_command_line(onnx_file: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from penjing.cli.app import app

    arguments = ["export", str(onnx_file), "--out", str(tmp_path), "--formats", "onnx"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = CliRunner().invoke(app, [*arguments, "--verify-only", "--json"])
    assert again.exit_code == 0
    assert json.loads(again.stdout)["files"][0]["ok"]


@needs_tensorflow
def test_without_formats_what_is_there_is_verified(onnx_file: Path, tmp_path: Path) -> None:
    """Files of other formats than the default ones were left out without a word."""
    from typer.testing import CliRunner

    from penjing.cli.app import app

    def ask(*more: str) -> Any:
        return CliRunner().invoke(app, ["export", str(onnx_file), "--out", str(out), *more])

    out = tmp_path / "files"
    assert ask("--formats", "onnx,litert").exit_code == 0
    shutil.copyfile(onnx_file, out / "model.int8.onnx")
    found = json.loads(ask("--verify-only", "--json").stdout)
    assert [Path(file["path"]).name for file in found["files"]] == [
        "model.tflite",
        "model.onnx",
    ]  # by their formats' names
    (note,) = found["notes"]
    assert "model.int8.onnx: not compared" in note
    assert "--data" in note
    for file in ("model.tflite", "model.onnx"):
        (out / file).unlink()
    assert "int8 files alone" in str(ask("--verify-only").exception)
    (out / "model.int8.onnx").unlink()
    assert "no exported file" in str(ask("--verify-only").exception)


def test_an_int8_file_that_differs_is_to_be_shown_real_inputs(small_net: nn.Module, onnx_file: Path) -> None:
    with pytest.raises(VerifyError, match=r"Compare it on inputs like those .* --data") as caught:
        pe.verify(onnx_file, nn.Sequential(small_net, nn.Softmax(1)), X, quantized=True)
    assert "do not deploy" in caught.value.remedy
    with pytest.raises(VerifyError) as caught:
        pe.verify(onnx_file, nn.Sequential(small_net, nn.Softmax(1)), X)
    assert "--data" not in caught.value.remedy


def test_verification_refuses_values_that_are_not_finite(small_net: nn.Module, onnx_file: Path) -> None:
    model = onnx.load(str(onnx_file))
    bias = next(t for t in model.graph.initializer if list(t.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    onnx.save(model, str(onnx_file))
    with pytest.raises(VerifyError, match="not finite"):
        pe.verify(onnx_file, small_net, X)


def test_an_onnx_file_is_a_source_like_any_other(
    small_net: nn.Module, onnx_file: Path, tmp_path: Path
) -> None:
    result = pe.export(onnx_file, tmp_path / "out", ["onnx"])
    assert result["onnx"].verification.relative == 0.0
    assert result["onnx"].path.read_bytes() == onnx_file.read_bytes()
    with pytest.raises(ExportError, match="from a torch module"):
        pe.export(onnx_file, tmp_path / "both", ["onnx", "program"])
    assert not (tmp_path / "both").exists()


def test_the_program_format_keeps_the_model_exactly(small_net: nn.Module, tmp_path: Path) -> None:
    result = pe.export(small_net, tmp_path, ["program"], example_inputs=X)
    assert result["program"].verification.max_abs == 0.0
    assert pe.open_file(tmp_path / "program").inputs[0].name == "input"


def test_the_program_format_keeps_what_onnx_lacks(tmp_path: Path) -> None:
    """The remedy that a refusal names: nothing else is written on the way."""

    class Gamma(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.lgamma(1 + x.abs())

    x = torch.randn(2, 5, 3)
    with pytest.raises(ExportError, match="the format 'program'"):
        pe.export(Gamma(), tmp_path, ["onnx"], example_inputs=x)
    assert pe.export(Gamma(), tmp_path, ["program"], example_inputs=x).ok


@pytest.mark.parametrize("clamp", [torch.clamp, torch.clamp_, torch.clip])
def test_bounds_of_two_kinds(clamp: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    class Bounded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return clamp(2 * x, 0, 0.5)

    assert pe.export(Bounded(), tmp_path, ["onnx"], example_inputs=X).ok


def test_bounds_in_buffers(tmp_path: Path) -> None:
    """One value between several bounds: an optimizer that names bounds by the value would mix them."""

    class Bounded(nn.Module):
        low: torch.Tensor
        high: torch.Tensor

        def __init__(self, high: float) -> None:
            super().__init__()
            self.register_buffer("low", torch.tensor(-1.0))
            self.register_buffer("high", torch.tensor(high))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(x, self.low, self.high)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Bounded(0.5), Bounded(float("inf"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = 2 * x
            out: torch.Tensor = self.one(y) - 3 * self.two(y).abs()
            return out

    assert pe.export(Both(), tmp_path, ["onnx"], example_inputs=X).ok


def test_large_weights_go_beside_the_file(
    small_net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penjing.export.onnx._EXTERNAL_ABOVE", 1000)
    path = pe.export_onnx(small_net, tmp_path / "a" / "model.onnx", X)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    result = pe.export(path, tmp_path / "b", ["onnx"], example_inputs=X)
    assert result.ok
    assert result["onnx"].size_bytes > 4 * sum(p.numel() for p in small_net.parameters())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, out: pe.export(net, out, ["savedmodel"], example_inputs=X), "saved_model"),
        (lambda net, out: pe.export(net, out, [], example_inputs=X), "no format"),
        (lambda net, out: pe.export(net, out, ["onnx_int8"], example_inputs=X), "Quantize first"),
        (lambda net, out: pe.export(net, out, ["onnx"], example_inputs="x"), "holds no tensor"),
        (lambda net, out: pe.export(out / "none.onnx", out, ["onnx"]), "no such ONNX file"),
        (lambda net, out: pe.export_onnx(net, out / "m.onnx", torch.randn(2, 5, 16, 16)), "cannot|channels"),
        (lambda net, out: pe.open_file(out / "missing.onnx"), "no such file"),
    ],
)
def test_mistakes_are_told(small_net: nn.Module, tmp_path: Path, call: object, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        call(small_net, tmp_path)  # type: ignore[operator]
    assert not list(tmp_path.glob("*.onnx"))


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'penjing\[tf\]'") as caught:
        get_format("saved_model").require()
    assert "\n" not in str(caught.value)


def test_importing_the_package_loads_no_serving_framework() -> None:
    code = (
        "import sys, penjing.export as e; e.formats(); print({'tensorflow', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
