"""Sizes beside the batch that files leave to their callers: lengths of texts and sounds, sides of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_models import needs_tensorflow
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.errors import ExportError, QuantizeError, VerifyError
from penjing.export import open_file
from penjing.export.axes import axes_by_input, free_sizes, parse_axes
from penjing.export.inputs import Feeds
from penjing.export.onnx import export_onnx


class Reads(nn.Module):
    """Words that attend to each other and to frames, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.body = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.frames, self.head = nn.Linear(3, 16), nn.Linear(16, 5)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        words = self.body(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        frames = self.frames(x)
        return self.head(words + (words @ frames.mT).softmax(-1) @ frames)  # type: ignore[no-any-return]


class Looks(nn.Module):
    """A small U-Net of any image: strides, a transposed convolution, a concatenation."""

    def __init__(self, *, resize: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1), nn.Conv2d(16, 4, 1)
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x).relu()
        y = self.head(torch.cat([fine, self.up(self.deep(fine))], 1))
        return nn.functional.interpolate(y, x.shape[-2:], mode="bilinear") if self.resize else y


class Listens(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer(6, 8, batch_first=True, bidirectional=True, num_layers=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])  # type: ignore[no-any-return]


def words(batch: int, n: int, m: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 20, (batch, n), generator=draw)
    return {"ids": ids, "x": torch.randn(batch, m, 3, generator=draw)}


LENGTHS = {"ids": {1: "n"}, "x": {1: "m"}}
SIDES = {"*": {2: "height", 3: "width"}}
IMAGE = torch.randn(2, 3, 16, 24)
FED = [
    "batch 1",
    "batch 3",
    "batch 1, n = 16",
    "batch 1, m = 16",
]  # both are 8 in the example, and told apart


@pytest.fixture(scope="module")
def reader() -> nn.Module:
    return pj.prune(Reads().eval(), words(2, 8, 8), ratio=0.4).model


def test_onnx_and_int8_take_other_lengths(reader: nn.Module, tmp_path: Path) -> None:
    example = words(2, 8, 8)
    made = pj.export(
        reader,
        tmp_path,
        ("onnx", "program"),
        example_inputs=example,
        dynamic_axes=LENGTHS,
        batch_sizes=(1, 3),
    )
    assert [row.fed for row in made["onnx"].verification.rows] == FED
    assert made["onnx"].verification.relative < 1e-5
    assert made["program"].notes == (
        "n (dimension 1 of ids) is fixed at 8",
        "m (dimension 1 of x) is fixed at 8",
    )
    session = onnxruntime.InferenceSession(str(made["onnx"].path))
    assert [i.shape for i in session.get_inputs()] == [["batch", "n"], ["batch", "m", 3]]
    assert [o.shape for o in session.get_outputs()] == [["batch", "n", 5]]
    fed = words(5, 17, 3)
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in fed.items()})
    with torch.no_grad():
        assert np.abs(found - reader(**fed).numpy()).max() < 1e-5
    int8 = tmp_path / "model.int8.onnx"
    config = {"dynamic_axes": LENGTHS}
    pj.quantize(reader, [words(8, 8, 8)], config, out=int8, example_inputs=example, time_it=False)
    checked = pj.verify(int8, reader, words(8, 8, 8), quantized=True, batch_sizes=(1, 3))
    assert [row.fed for row in checked.rows] == FED
    assert max(row.rms_relative for row in checked.rows) < 0.05


@pytest.mark.tf
@needs_tensorflow
def test_tensorflow_takes_other_lengths_and_sides(reader: nn.Module, tmp_path: Path) -> None:
    formats = ("saved_model", "litert")
    for model, example, axes in ((reader, words(2, 8, 8), LENGTHS), (Looks().eval(), IMAGE, SIDES)):
        folder = tmp_path / type(model).__name__
        made = pj.export(
            model, folder, formats, example_inputs=example, dynamic_axes=axes, batch_sizes=(1, 3)
        )
        for file in made.files:
            assert file.verification.relative < 1e-5
            assert sum(bool(row.free) for row in file.verification.rows) >= 1
            assert not file.notes


class Resamples(nn.Module):
    """The image and a coarser one, brought to some size, padded or pooled."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.coarser, self.how = nn.Conv2d(3, 4, 3, 2, 1), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.coarser(x))


RESAMPLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nearest": lambda x, y: F.interpolate(y, scale_factor=2),
    "nearest by size": lambda x, y: F.interpolate(F.interpolate(y, size=(5, 7)), size=x.shape[2:]),
    "nearest, exact": lambda x, y: F.interpolate(y, scale_factor=2, mode="nearest-exact"),
    "linear": lambda x, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "linear, corners": lambda x, y: F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True),
    "linear by 1.5": lambda x, y: F.interpolate(y, scale_factor=1.5, mode="bilinear"),
    "smaller": lambda x, y: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
    "cubic": lambda x, y: F.interpolate(y, scale_factor=2, mode="bicubic"),
    "line": lambda x, y: F.interpolate(y.flatten(2), scale_factor=3, mode="linear"),
    "volume": lambda x, y: F.interpolate(y.unsqueeze(2), scale_factor=2, mode="trilinear"),
    "mirrored": lambda x, y: F.pad(y, (1, 2, 1, 1), mode="reflect"),
    "repeated": lambda x, y: F.pad(y, (1, 2, 1, 1), mode="replicate"),
    "around": lambda x, y: F.pad(y, (1, 2, 1, 1), mode="circular"),
    "pyramid": lambda x, y: torch.cat(
        [F.interpolate(F.adaptive_avg_pool2d(y, n), size=x.shape[2:], mode="bilinear") for n in (1, 2, 3)], 1
    ),
    "largest": lambda x, y: F.adaptive_max_pool2d(y, (3, 2)),
}


@pytest.mark.tf
@needs_tensorflow
@pytest.mark.parametrize("how", RESAMPLED)
def test_images_of_any_size_are_resampled(how: str, tmp_path: Path) -> None:
    x, formats = torch.randn(1, 3, 18, 14), ("onnx", "saved_model", "litert")
    model = Resamples(RESAMPLED[how]).eval()
    made = pj.export(model, tmp_path, formats, example_inputs=x, dynamic_axes=SIDES, batch_sizes=(1,))
    for file in made.files:
        assert not file.notes
        assert sum(bool(row.free) for row in file.verification.rows) == 2
        assert file.verification.relative < 1e-5
        found = pj.verify(file.path, model, torch.randn(1, 3, 33, 21), batch_sizes=(1,))
        assert found.ok


@pytest.mark.tf
@needs_tensorflow
def test_where_tensorflow_needs_a_size_it_is_fixed_and_told(tmp_path: Path) -> None:
    model = Resamples(lambda x, y: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)).eval()
    made = pj.export(model, tmp_path, ("onnx", "saved_model"), example_inputs=IMAGE, dynamic_axes=SIDES)
    assert [row.fed for row in made["onnx"].verification.rows][3:] == [
        "batch 1, height = 32",
        "batch 1, width = 48",
    ]
    assert not made["onnx"].notes
    why, *fixed = made["saved_model"].notes
    assert "sizes beside the batch are fixed" in why
    assert "Resize" in why
    assert [note.split(" (")[0] for note in fixed] == ["height", "width"]


@pytest.mark.tf
@needs_tensorflow
def test_a_saved_model_refuses_sizes_that_were_not_left_free(tmp_path: Path) -> None:
    """Its signature checks types alone: it answered with wrong numbers, or failed somewhere within."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(4)).eval()
    pj.export(model, tmp_path, ("saved_model",), example_inputs=IMAGE)
    runner = open_file(tmp_path / "saved_model")
    assert runner.run({"input": np.zeros((5, 3, 16, 24), np.float32)})[0].shape == (5, 4, 4, 4)
    with pytest.raises(Exception, match=r"not compatible with expected shape \[\?,3,16,24\]"):
        runner.run({"input": np.zeros((1, 3, 16, 32), np.float32)})


@pytest.mark.tf
@needs_tensorflow
def test_where_litert_alone_needs_a_size_it_is_fixed_and_told(tmp_path: Path) -> None:
    class Halves(nn.Module):  # 64-bit numbers, which LiteRT does not divide
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.arange(x.shape[1]) // 2)[:, None]

    x = torch.randn(2, 6, 3)
    made = pj.export(
        Halves(), tmp_path, ("saved_model", "litert"), example_inputs=x, dynamic_axes={"*": {1: "n"}}
    )
    assert not made["saved_model"].notes
    assert any("sizes beside the batch are fixed" in note for note in made["litert"].notes)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers_have_any_length(layer: type[nn.RNNBase], tmp_path: Path) -> None:
    def kernels() -> list[dict[Any, Any]]:
        return [dict(op.input.py_kernels) for op in (torch.ops.aten.lstm, torch.ops.aten.gru)]

    model, before = Listens(layer).eval(), kernels()
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 10, 6), dynamic_axes={"*": {1: "time"}})
    session = onnxruntime.InferenceSession(str(path))
    assert session.get_outputs()[0].shape == ["batch", "time", 3]
    for shape in ((1, 4, 6), (3, 33, 6)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert np.abs(session.run(None, {"input": x.numpy()})[0] - model(x).numpy()).max() < 1e-5
    assert kernels() == before


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / int(x.shape[1])  # type: ignore[no-any-return]


class Zooms(nn.Module):
    """PSPNet's way to its own input's size."""

    def forward(self, x: Tensor) -> Tensor:
        assert (x.shape[1] - 1) % 5 == 0
        return F.interpolate(x[:, None], size=(int((x.shape[1] - 1) / 5 * 10 + 1), 4))


class Patches(nn.Module):
    """DepthAnything's way to its own input's size: 57 to 69 are the same number of patches as 56."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x[:, None], size=(int(x.shape[1] // 3 * 3.0), 4))


class Areas(nn.Module):
    """A number of two sizes at once."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x[:, None], 2) * int(x.shape[1] * x.shape[2] / 4)


class Lattice(nn.Module):
    """Sizes that are so many windows and one more, which holds for others as well."""

    def forward(self, x: Tensor) -> Tensor:
        assert (x.shape[1] - 1) % 5 == 0
        assert (x.shape[1] * x.shape[2]) % 4 == 0
        return F.max_pool2d(x[:, None], (2, 2))


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mT


@pytest.mark.parametrize(
    ("model", "axes", "told"),
    [
        (
            Counts(),
            {"*": {1: "steps"}},
            "steps (dimension 1 of input): the forward computes with it as the number 6",
        ),
        (
            Zooms(),
            {"*": {1: "steps"}},
            "steps (dimension 1 of input): the forward computes a number of it at "
            "test_export/test_dynamic_axes.py:",
        ),
        (
            Patches(),
            {"*": {1: "side"}},
            "side (dimension 1 of input): the forward computes a number of it at "
            "test_export/test_dynamic_axes.py:",
        ),
        (
            Areas(),
            {"*": {1: "rows", 2: "columns"}},
            "rows (dimension 1 of input): the forward computes a number of it at "
            "test_export/test_dynamic_axes.py:",
        ),
        (Listens(nn.RNN), {"*": {1: "steps"}}, "is unrolled"),
        (Squares(), {"*": {1: "rows", 2: "columns"}}, "rows and columns are always the same size"),
    ],
)
def test_what_fixes_a_size_is_told(model: nn.Module, axes: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        pj.export(model.eval(), tmp_path, ("onnx",), example_inputs=torch.randn(2, 6, 6), dynamic_axes=axes)
    assert told in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_what_other_sizes_fulfil_fixes_none(tmp_path: Path) -> None:
    x, more = torch.randn(2, 6, 6), torch.randn(3, 16, 8)
    export_onnx(Lattice(), tmp_path / "m.onnx", x, dynamic_axes={"*": {1: "rows", 2: "columns"}})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.run(None, {"input": more.numpy()})[0].shape == Lattice()(more).shape


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"words": {1: "n"}}, "no input is called 'words'"),
        ({"ids": {0: "n"}}, "dimension 0 is the batch"),
        ({"ids": {2: "n"}}, "no dimension 2"),
        ({"ids": {-1: "n"}}, "no dimension -1"),
        ({"ids": {1: "batch"}}, "'batch' cannot be the name"),
        ({"ids": {1: "a b"}}, "'a b' cannot be the name"),
        ({"ids": {1: "n"}, "x": {1: "n"}}, "n is 8 and 6"),
        ({"x": {2: "one"}}, "size 1 in dimension 2"),
    ],
)
def test_wrong_axes_are_refused(axes: Any, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        axes_by_input(axes, {"ids": (2, 8), "x": (2, 6, 1)})


def test_patterns_stand_for_the_inputs_that_have_the_dimension() -> None:
    assert parse_axes(["*:1=n", "x:2=m"]) == {"*": {1: "n"}, "x": {2: "m"}}
    found = axes_by_input(parse_axes(["*:1=n", "x:2=m"]), {"ids": (2, 8), "x": (2, 8, 3), "count": (2,)})
    assert found == {"ids": {1: "n"}, "x": {1: "n", 2: "m"}}
    with pytest.raises(ExportError, match="'length' names no size"):
        parse_axes(["length"])


def test_a_size_is_changed_wherever_it_is() -> None:
    feeds: Feeds = {"ids": np.arange(16).reshape(2, 8), "x": np.zeros((2, 8, 5), np.float32)}
    named, unnamed = (
        free_sizes({"ids": (None, None), "x": (None, None, 5)}, names, feeds)
        for names in ({"ids": (None, "n"), "x": (None, "n", None)}, {})
    )
    assert [one.name for one in named] == ["n"]
    assert [one.name for one in unnamed] == ["dimension 1"]
    for (one,) in (named, unnamed):
        (size, twice), (_, half), (odd, _) = one.changed(feeds)
        assert [size, odd] == [16, 15]
        assert [twice["x"].shape, half["ids"].shape] == [(2, 16, 5), (2, 4)]
        assert twice["ids"][0].tolist() == [*range(8), *range(8)]


class Lopsided(nn.Module):
    """Right for the lengths below ten alone: what a check at the example's size cannot see."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.shape[1]) < 10)[None, :, None]


def test_a_file_that_is_wrong_at_other_sizes_is_found(tmp_path: Path) -> None:
    x = torch.rand(2, 8, 3) + 1
    path = export_onnx(nn.Identity(), tmp_path / "m.onnx", x, dynamic_axes={"*": {1: "n"}})
    with pytest.raises(VerifyError, match="with batch 1, n = 16 the largest relative difference is 1"):
        pj.verify(path, Lopsided(), x)


def test_sizes_that_the_model_refuses_are_named(tmp_path: Path) -> None:
    model = Reads().eval()  # has twenty places
    path = export_onnx(model, tmp_path / "m.onnx", words(2, 12, 8), dynamic_axes=LENGTHS)
    found = pj.verify(path, model, words(2, 12, 8), batch_sizes=(2,))
    assert [row.fed for row in found.rows] == ["batch 2", "batch 2, n = 6", "batch 2, m = 16"]


def test_a_file_is_free_as_it_was_written(tmp_path: Path) -> None:
    path = export_onnx(Looks().eval(), tmp_path / "m.onnx", IMAGE)
    with pytest.raises(QuantizeError, match="as they were written"):
        pj.quantize(path, [IMAGE], {"dynamic_axes": SIDES}, out=tmp_path / "int8.onnx")
    with pytest.raises(ExportError, match="as they were written"):
        pj.export(path, tmp_path / "out", ("onnx",), dynamic_axes=SIDES)


def test_products_along_a_free_size_are_refused_by_what_they_are(tmp_path: Path) -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumprod(1)

    with pytest.raises(ExportError, match="running product"):
        export_onnx(Products(), tmp_path / "m.onnx", torch.randn(2, 6), dynamic_axes={"*": {1: "length"}})
