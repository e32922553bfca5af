"""Forwards that return None, remember, or write a file no runtime takes: right names, nothing left behind."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.errors import ExportError, PenjingError, QuantizeError, RecipeError
from penjing.export.onnx import export_onnx


class Cache:
    """What a language model gives out beside its scores, for its next call."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Giving(nn.Module):
    """Gives what it is told to, made of its hidden layer and its scores."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.hidden, self.scores, self.what = nn.Linear(6, 16), nn.Linear(16, 16), what

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.hidden(x))
        scores = self.scores(hidden)
        return {
            "dict": {"logits": scores, "aux": None, "hidden": hidden},
            "nested": {"logits": scores, "aux": None, "hidden": [hidden, 2 * hidden]},
            "tuple": (scores, None, hidden),
            "only": {"aux": None, "hidden": hidden},
            "cache": {"logits": scores, "past": Cache(hidden), "hidden": hidden},
            "number": (scores, 3),
            "text": {"logits": scores, "kind": "scores"},
        }[self.what]


class Remembering(nn.Module):
    """Keeps an average of what it has seen, in eval mode too."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 20), nn.Linear(20, 3)
        self.register_buffer("mean", torch.zeros(20))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        found: Tensor = self.last(torch.relu(hidden - self.mean))
        return found


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("dict", ["logits", "hidden"]),
        ("nested", ["logits", "hidden.0", "hidden.1"]),
        ("tuple", ["output_0", "output_1"]),
        ("only", ["output"]),
        ("cache", ["logits", "hidden"]),
    ],
)
def test_what_is_no_tensor_takes_no_name(what: str, names: list[str], tmp_path: Path) -> None:
    """Each name holds the tensor it names in the forward; the stored program gives the same."""
    model = Giving(what).eval()
    made = pj.export(model, tmp_path, ("onnx", "program"), example_inputs=X)
    assert made.ok
    session = ort.InferenceSession(made["onnx"].path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names
    with torch.no_grad():
        wanted = [t for t in torch.utils._pytree.tree_leaves(model(X)) if isinstance(t, Tensor)]
    for found, tensor in zip(session.run(None, {"input": X.numpy()}), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), tensor)


@pytest.mark.parametrize(("what", "value"), [("number", "3"), ("text", "'scores'")])
def test_a_constant_among_the_outputs_is_refused(what: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match=f"the constant {value}"):
        pj.export(Giving(what).eval(), tmp_path / "out", ("onnx",), example_inputs=X)
    assert list(tmp_path.iterdir()) == []


def test_looking_at_a_model_does_not_move_what_it_remembers(tmp_path: Path) -> None:
    """Neither the original nor the pruned network has seen anything, and the file's notes speak of it."""
    model = Remembering().eval()
    pj.inspect(model, X)
    small = pj.prune(model, X).model
    made = pj.export(small, tmp_path, ("onnx",), example_inputs=X)
    assert not model.mean.any()
    assert small.mean.shape == (10,)
    assert not small.mean.any()  # type: ignore[operator]
    assert any("mean" in note for note in made["onnx"].notes)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_what_no_runtime_takes_is_not_left_behind(tmp_path: Path) -> None:
    """torch writes projected LSTMs wrongly; an older file under the same name stays."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 20, batch_first=True, proj_size=8)

        def forward(self, x: Tensor) -> Any:
            return self.lstm(x)[0]

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.onnx").write_text("an older file")
    with pytest.raises(PenjingError, match="onnx"):
        pj.export(Projected().eval(), folder, ("onnx",), example_inputs=torch.randn(2, 5, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (folder / "model.onnx").read_text() == "an older file"


def test_a_model_of_two_inputs_is_verified_on_batches_of_two(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(4, 3)

        def forward(self, p: Tensor, q: Tensor) -> Any:
            return self.a(p) + self.b(q)

    model, pair = Sum().eval(), (torch.randn(2, 6), torch.randn(2, 4))
    made = pj.export(model, tmp_path, ("onnx",), example_inputs=pair, data=[pair])
    assert made.ok
    assert pj.verify(made["onnx"].path, model, pair).ok
    assert pj.verify(made["onnx"].path, model, (pair, torch.zeros(2))).ok


def test_states_of_a_number_of_samples_fix_the_batch(tmp_path: Path) -> None:
    """Their samples are dimension 1, which is not free: the program must not promise other sizes."""

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 6, batch_first=True)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
            return self.lstm(x, (h, c))[0]

    given = (torch.randn(2, 7, 5), torch.randn(1, 2, 6), torch.randn(1, 2, 6))
    made = pj.export(Stateful().eval(), tmp_path, ("onnx", "program"), example_inputs=given)
    assert [[row.batch for row in file.verification.rows] for file in made.files] == [[2], [2]]


def test_a_program_keeps_bfloat16(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).bfloat16().eval()
    assert pj.export(model, tmp_path, ("program",), example_inputs=X.bfloat16()).ok


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow (extra `tf`)")
def test_an_op_that_litert_refuses_is_named_in_one_line(tmp_path: Path) -> None:
    """Without the converter's call sites, and nothing is left."""

    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x).scatter_reduce(1, x.argsort(1), x, "amax")

    with pytest.raises(PenjingError) as refusal:
        pj.export(Largest(), tmp_path / "out", ("litert",), example_inputs=torch.randn(2, 3))
    assert "at litert: " in str(refusal.value)
    assert "'tf.TensorScatterMax' op is neither" in str(refusal.value)
    assert "callsite" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_resizing_keeps_the_factors_it_was_given(mode: str, tmp_path: Path) -> None:
    class Smaller(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=(0.4, 0.7), mode=mode, antialias=True)

    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Smaller()).eval()
    pj.export(model, tmp_path, ("onnx",), example_inputs=x)  # which is verified


HALVES = [(torch.float16, "onnx"), (torch.float16, "saved_model"), (torch.bfloat16, "saved_model")]


@pytest.mark.parametrize(("kind", "name"), HALVES)
def test_half_precision_agrees_as_far_as_it_can(kind: torch.dtype, name: str, tmp_path: Path) -> None:
    if name == "saved_model":
        pytest.importorskip("tensorflow")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)).to(kind).eval()
    made = pj.export(model, tmp_path, (name,), example_inputs=X.to(kind))
    assert made.ok


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_an_op_without_a_kernel_for_the_weights_says_float(kind: torch.dtype, tmp_path: Path) -> None:
    model, x = nn.Conv2d(1, 2, 3).to(kind).eval(), torch.randn(2, 1, 5, 5).to(kind)
    with pytest.raises(ExportError, match=rf"model\.float\(\) \(its weights are {str(kind)[6:]}\)"):
        pj.export(model, tmp_path, ("litert",), example_inputs=x)
    with pytest.raises(QuantizeError, match=rf"the weights are {str(kind)[6:]}\. Call model\.float\(\)"):
        pj.quantize(model, [x], out=tmp_path / "int8.onnx", example_inputs=x)
    assert not list(tmp_path.iterdir())


def test_a_half_precision_file_that_the_runtime_refuses_says_float(tmp_path: Path) -> None:
    model, x = nn.Conv2d(1, 2, 3).bfloat16().eval(), torch.randn(2, 1, 5, 5).bfloat16()
    with pytest.raises(ExportError, match=r"Call model\.float\(\)"):
        pj.export(model, tmp_path, ("onnx",), example_inputs=x)


def half_file(path: Path) -> Path:
    """An ONNX file of a network in float16, as converters make them."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).half().eval()
    return export_onnx(model, path, torch.randn(2, 3, 8, 8).half(), dynamic_batch="auto")


def test_a_half_precision_onnx_file_is_compared_as_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    made = pj.export(half_file(tmp_path / "m.onnx"), tmp_path / "out", ("saved_model",))
    assert made.files[0].verification.tolerance > 1e-3


def test_a_half_precision_onnx_file_is_to_be_float32_for_int8(tmp_path: Path) -> None:
    path, x, y = half_file(tmp_path / "m.onnx"), torch.randn(4, 3, 8, 8), torch.arange(4)
    with pytest.raises(QuantizeError, match=r"are float16\. Export it in float32"):
        pj.quantize(path, [x], out=tmp_path / "int8.onnx")
    with pytest.raises(RecipeError, match="float16, and int8 is made from float32"):
        pj.compress(str(path), ([(x, y)], [(x, y)]), out=tmp_path / "run")
    assert [left.name for left in tmp_path.iterdir()] == ["m.onnx"]


@torch.library.custom_op("penjing_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return twice(x)  # type: ignore[no-any-return]


def test_an_op_that_no_format_holds_is_not_sent_to_another_format(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Replace penjing_test\.twice\.default, which no format holds"):
        pj.export(Twice(), tmp_path, ("onnx",), example_inputs=X)


class TakesDict(nn.Module):
    """One argument that is a dict, as of several sensors; an output is called like an input."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h = torch.relu(self.image(batch["image"]) + self.depth(batch["depth"]))
        return {"seg": self.head(h), "depth": h.mean(1)}


def test_a_dict_that_is_the_one_argument_goes_through_every_stage(tmp_path: Path) -> None:
    model = TakesDict().eval()
    inputs = {"image": torch.randn(2, 3, 6, 6), "depth": torch.randn(2, 1, 6, 6)}
    batches = [inputs, dict(reversed(inputs.items()))]  # of another order, which names do not mind
    small = pj.prune(model, inputs, ratio=0.5).model
    result = pj.recover(small, model, batches, pj.RecoverConfig(epochs=1, lr=1e-3), val=batches)
    exported = pj.export(
        result.model, tmp_path, ("onnx",), example_inputs=inputs, data=batches[1:], batch_sizes=(2, 3)
    )
    assert exported.ok
    session = ort.InferenceSession(exported["onnx"].path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["image", "depth"]
    assert [value.name for value in session.get_outputs()] == ["seg", "output_depth"]


class Mixed(nn.Module):
    """Computes in bfloat16 what its author trained so: within the forward, and by a decorated method."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.mixed = mixed
        self.conv, self.hidden, self.scores = nn.Conv2d(3, 8, 3), nn.Linear(8, 16), nn.Linear(16, 5)

    @torch.autocast("cpu", dtype=torch.bfloat16)  # type: ignore[untyped-decorator]
    def _last(self, x: Tensor) -> Tensor:
        return torch.relu(self.hidden(x))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mixed):
            x = self.conv(x).mean((2, 3))
        with torch.autocast("cpu", enabled=False):
            x = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        x = self._last(x) if self.mixed else torch.relu(self.hidden(x))
        scores: Tensor = self.scores(x.float())
        return scores


def test_autocast_in_a_forward_becomes_a_float_file(tmp_path: Path) -> None:
    """Files compute in float32, as the same network without autocast does; the module has its own again."""
    torch.manual_seed(0)
    mixed, plain = Mixed(True).eval(), Mixed(False).eval()
    plain.load_state_dict(mixed.state_dict())
    x = torch.randn(8, 3, 12, 12)
    with torch.no_grad():
        before, wanted = mixed(x), plain(x).numpy()
    pruned = pj.prune(mixed, x, ratio=0.5)
    assert type(pruned.model) is Mixed
    formats = ["onnx", "saved_model", "litert"] if find_spec("tensorflow") else ["onnx"]
    made = pj.export(mixed, tmp_path / "whole", formats, example_inputs=x)
    for file in made.files:
        assert any("autocast to bfloat16" in note for note in file.notes), file.notes
        assert all(row.relative < 1e-4 for row in file.verification.rows)
    session = ort.InferenceSession(str(made["onnx"].path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert abs(found - wanted).max() < 1e-5 * abs(wanted).max() + 1e-6
    with torch.no_grad():
        assert torch.equal(mixed(x), before)
        assert abs(before.numpy() - wanted).max() > 1e-4
    assert not any(
        "autocast" in note for note in pj.export(plain, tmp_path / "plain", example_inputs=x).files[0].notes
    )
    assert pj.quantize(pruned.model, [x], out=tmp_path / "q.onnx", time_it=False).num_quantized == 3


class Windows(nn.Module):
    """Cuts images into windows and takes the batch back from their number, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        cut = self.conv(x).reshape(-1, 8, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 4, 4)
        summed: Tensor = cut.reshape(cut.shape[0] // 4, 2, 2, 8, 4, 4).sum((1, 2))
        return summed


def test_a_free_batch_has_its_name_whatever_the_tracer_called_it(tmp_path: Path) -> None:
    made = pj.export(Windows().eval(), tmp_path, ["onnx"], example_inputs=torch.randn(2, 3, 8, 8))
    session = ort.InferenceSession(str(made["onnx"].path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    assert session.get_outputs()[0].shape == ["batch", 8, 4, 4]


class Named(nn.Module):
    """Takes its inputs by name alone, and decides by their size."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, **given: Tensor) -> Tensor:
        a, b = given["a"], given["b"]
        if 2 * a.shape[0] == 7:
            return a
        found: Tensor = self.last(torch.where(b.sum(1, keepdim=True) > 0, a, b))
        return found


def test_inputs_by_any_name_are_exported(tmp_path: Path) -> None:
    """Torch's guards on them name arguments that the traced program does not have."""
    x = {"a": torch.randn(2, 6), "b": torch.randn(2, 6)}
    made = pj.export(Named().eval(), tmp_path, formats=("onnx",), example_inputs=x)
    session = ort.InferenceSession(str(made.files[0].path))
    assert [one.name for one in session.get_inputs()] == ["a", "b"]
    assert {row.batch for row in made.files[0].verification.rows} > {1}
