"""Full int8 LiteRT: what stays in float, that it is as little as keeps the answers, and that notes tell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from export_models import needs_tensorflow
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import penjing.export as pe
from penjing.errors import ExportError

if TYPE_CHECKING:
    from penjing.export.litert_int8.graph import Operation

pytestmark = [pytest.mark.tf, needs_tensorflow]


def images(count: int = 48) -> torch.Tensor:
    """Smooth pictures of very different contrast."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    contrast = torch.logspace(-1.5, 0.5, count)[torch.randperm(count, generator=generator)]
    return nn.functional.interpolate(coarse, 16, mode="bilinear") * contrast[:, None, None, None]


def exported(model: nn.Module, folder: Path, x: torch.Tensor) -> pe.ExportedFile:
    """The file of a module, by way of an ONNX file and a SavedModel that stay in ``folder``."""
    source = folder / "source.onnx"
    if not source.exists():
        pe.export_onnx(model.eval(), source, x[:2])
    return pe.export(source, folder, ["litert_int8"], data=x.reshape(-1, 8, 3, 16, 16), batch_sizes=(1,))[
        "litert_int8"
    ]


def converter_of(model: nn.Module, folder: Path, x: torch.Tensor) -> tuple[Any, list[dict[str, np.ndarray]]]:
    """TensorFlow's converter for the module, and samples by name."""
    from penjing.export.coexist import quiet_tf
    from penjing.export.saved_model import SIGNATURE, write_saved_model
    from penjing.export.tf_ops.backend import tf

    source = folder / "source.onnx"
    if not source.exists():
        pe.export_onnx(model.eval(), source, x[:2])
    name = pe.OnnxRunner(source).inputs[0].name
    samples = [{name: row[None].numpy()} for row in x]
    saved = str(write_saved_model(source, folder / "saved"))
    with quiet_tf():
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=[SIGNATURE])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: iter(samples)
    return converter, samples


def noise(file: Path, model: nn.Module, x: torch.Tensor) -> float:
    """Root-mean-square difference over the output's."""
    found = pe.verify(file, model, x, batch_sizes=(len(x),), quantized=True, raise_on_failure=False)
    return found.rows[0].rms_relative


class Normed(nn.Module):
    """A convolution, a layer norm over channels and space, a convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm([8, 16, 16])
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(nn.functional.avg_pool2d(y, 4).flatten(1))  # type: ignore[no-any-return]


def test_a_layer_norm_stays_in_float_and_its_neighbours_do_not(tmp_path: Path) -> None:
    from penjing.export.coexist import quiet_tf
    from penjing.export.litert_int8.graph import census

    model, x = Normed(), images()
    file = exported(model, tmp_path, x)
    found = census(file.path.read_bytes())
    assert found.int8_convolutions == found.convolutions == 2
    assert found.floats["RSQRT"] == found.floats["SQUARED_DIFFERENCE"] == 1
    assert file.notes[0].startswith("normalisation stays in float")
    assert "RSQRT" in file.notes[0]
    assert list(file.notes) == file.to_dict()["notes"]
    converter, _ = converter_of(model, tmp_path, x)
    with quiet_tf():
        (tmp_path / "plain.tflite").write_bytes(converter.convert())
    assert noise(file.path, model, x) < 0.1 < noise(tmp_path / "plain.tflite", model, x)


def test_a_plain_network_is_all_int8_without_notes_and_the_same_each_time(
    small_net: nn.Module, tmp_path: Path
) -> None:
    from penjing.export.litert_int8.graph import census

    x = images()
    first = exported(small_net, tmp_path, x)
    content = first.path.read_bytes()
    found = census(content)
    assert first.notes == ()
    assert found.int8_convolutions == found.convolutions == 2
    assert found.int8_macs == 1
    assert found.floats == {}
    assert exported(small_net, tmp_path, x).path.read_bytes() == content


def test_a_file_that_is_not_smaller_says_so(tmp_path: Path) -> None:
    x = images()
    for width, told in ((4, True), (64, False)):
        torch.manual_seed(0)
        convs = [layer for _ in range(6) for layer in (nn.Conv2d(width, width, 1), nn.Sigmoid())]
        model = nn.Sequential(
            nn.Conv2d(3, width, 3, 2), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
        )
        folder = tmp_path / str(width)
        folder.mkdir()
        file = exported(model, folder, x)
        plain = pe.export(folder / "source.onnx", folder, ["litert"], batch_sizes=(1,))["litert"]
        assert (file.size_bytes >= plain.size_bytes) == told
        assert any("not smaller than the float one" in note for note in file.notes) == told


def test_an_output_finer_than_8_bits_stays_in_float(tmp_path: Path) -> None:
    """Two classes lie closer to each other than one step of an int8 output, which a third one widens."""
    from penjing.export.litert_int8.graph import census

    torch.manual_seed(0)
    head = nn.Linear(8, 3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    with torch.no_grad():
        head.weight *= torch.tensor([[0.01], [0.01], [0.0]])
        head.bias.copy_(torch.tensor([2.0, 2.001, -8.0]))
    x = images()
    file = exported(model, tmp_path, x)
    assert "FULLY_CONNECTED" in file.notes[0]
    assert census(file.path.read_bytes()).int8_convolutions == 1
    theirs = model(x).argmax(1).numpy()
    runner = pe.open_file(file.path)
    ours = runner.run({runner.inputs[0].name: x.numpy()})[0].argmax(1)
    assert np.mean(ours == theirs) >= 0.9


def test_ranges_are_those_of_the_tensor_alone(tmp_path: Path) -> None:
    """A sigmoid keeps its own range where the product after it is written over it."""
    from penjing.export.coexist import quiet_tf
    from penjing.export.litert_int8.ranges import with_ranges

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 2, 1))
    converter, samples = converter_of(model, tmp_path, images(4))
    converter._experimental_calibrate_only = True
    with quiet_tf():
        content = with_ranges(converter.convert(), samples)
    ranges = dict(read_ranges(content))
    low, high = ranges["LOGISTIC"]
    assert 0 <= low < high <= 1
    assert ranges["MUL"][0] < 0


class RawPixels(nn.Module):
    """Takes 8-bit images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(x.float() / 255).mean((2, 3))
        return result


def test_raw_pixels_may_come_as_floats_and_normalised_ones_are_refused_by_name(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    source = tmp_path / "source.onnx"
    pe.export_onnx(RawPixels().eval(), source, pixels[:2])
    for network in (source, RawPixels().eval()):
        with pytest.raises(ExportError, match=r"export at .*float32 numbers .* takes uint8"):
            pe.export(
                network, tmp_path / "no", ["litert_int8"], data=[pixels / 255], example_inputs=pixels[:2]
            )
    assert pe.export(source, tmp_path / "yes", ["litert_int8"], data=[pixels.float()]).ok


def read_ranges(content: bytes) -> Iterator[tuple[str, tuple[float, float]]]:
    from tensorflow.lite.python import schema_py_generated as schema

    from penjing.export.litert_int8.graph import operations

    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    for op in operations(content):
        part = graph.Tensors(op.outputs[0]).Quantization()
        if part is not None and part.MinLength():
            yield op.kind, (float(part.Min(0)), float(part.Max(0)))


def ops(*rows: tuple[str, tuple[int, ...], int]) -> list[Operation]:
    """Float operations of (kind, inputs, output)."""
    from penjing.export.litert_int8.graph import Operation

    return [Operation(kind, f"{kind}{o}", given, (o,), 0, "FLOAT32") for kind, given, o in rows]


def test_normalisations_are_known_by_the_operations_around_a_root() -> None:
    from penjing.export.litert_int8.normalisation import normalisations

    layer_norm = ops(
        ("CONV_2D", (0, 90), 1),
        ("MEAN", (1,), 2),
        ("SUB", (1, 2), 3),
        ("SQUARED_DIFFERENCE", (1, 2), 4),
        ("MEAN", (4,), 5),
        ("ADD", (5, 91), 6),
        ("RSQRT", (6,), 7),
        ("MUL", (3, 7), 8),
        ("ADD", (8, 92), 9),
        ("CONV_2D", (9, 93), 10),
    )
    assert [op.name for op in normalisations(layer_norm)[0]] == [op.name for op in layer_norm[1:8]]
    rms_norm = ops(
        *(("RELU", (0,), 1), ("MUL", (1, 1), 2), ("SUM", (2,), 3), ("MUL", (3, 90), 4), ("SQRT", (4,), 5)),
        ("DIV", (1, 5), 6),
    )
    assert [op.name for op in normalisations(rms_norm)[0]] == [op.name for op in rms_norm[1:]]
    other = ops(("MEAN", (0,), 1), ("SQRT", (1,), 2), ("RSQRT", (0,), 3), ("MUL", (1, 3), 4))
    assert normalisations(other) == []


class _Additive:
    """Files are the names in float; every other operation adds its noise."""

    def __init__(self, noises: list[float]) -> None:
        self.noises = {f"op{i}": noise for i, noise in enumerate(noises)}

    def quantize(self, kept: frozenset[str]) -> bytes:
        return " ".join(sorted(kept)).encode()

    def noise(self, content: bytes, count: int) -> float:
        kept = set(content.decode().split())
        return sum(noise for name, noise in self.noises.items() if name not in kept)

    def __call__(self, content: bytes) -> object:
        from penjing.export.litert_int8.compare import Quality

        noise = self.noise(content, 1)
        return Quality(
            1.0 if noise < 0.001 else 0.95 if noise < 0.02 else 0.5, -10 * math.log10(noise + 1e-15)
        )


@given(st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 100)), min_size=1, max_size=40))
def test_the_search_keeps_the_answers_at_the_least_price(rows: list[tuple[float, int]]) -> None:
    from penjing.export.litert_int8.graph import Operation
    from penjing.export.litert_int8.search import CHEAP, ENOUGH, GOOD, Search

    judge = _Additive([noise for noise, _ in rows])
    given = [Operation("CONV_2D", f"op{i}", (), (i,), macs, "FLOAT32") for i, (_, macs) in enumerate(rows)]
    choice = Search(judge.quantize, judge, given).run()  # type: ignore[arg-type]
    assert choice.quality.holds(ENOUGH)
    assert {op.name for op in choice.kept} == set(choice.content.decode().split())
    if sum(noise for noise, _ in rows) < 0.001:
        assert choice.kept == ()
    last = next((i for i in reversed(range(len(rows))) if rows[i][1]), len(rows) - 1)
    if choice.quality.holds(GOOD) and choice.kept != tuple(given[last:]):
        cheap = sum(op.macs for op in choice.kept) <= CHEAP * sum(op.macs for op in given)
        # more than that is only spent where nothing cheaper gave enough
        assert cheap or not _cheapest(judge, given)


def _cheapest(judge: _Additive, operations: list[Operation]) -> bool:
    """Whether all operations that cost nothing, in float, would be good."""
    free = frozenset(op.name for op in operations if not op.macs)
    return judge.noise(judge.quantize(free), 1) < 0.001


class Causal(nn.Module):
    """Attention that a mask of -∞ keeps from looking ahead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.full((12, 12), float("-inf")).triu(1)
        out: torch.Tensor = self.head((self.query(x) @ self.key(x).mT / 4 + mask).softmax(-1) @ x)
        return out


def test_masks_of_infinities_stay_in_float(tmp_path: Path) -> None:
    """The interpreter ended the process on a sum with such a mask in int8."""
    torch.manual_seed(1)
    x = torch.randn(48, 12, 16)
    made = pe.export(
        Causal().eval(), tmp_path, ["litert_int8"], example_inputs=x[:2], data=x.reshape(-1, 8, 12, 16)
    )
    file = made["litert_int8"]
    assert any(note.startswith("infinities stay in float") for note in file.notes)
    assert noise(file.path, Causal().eval(), x[:8]) < 0.3


class Fixed(nn.Module):
    """Its forward computes with the batch as a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 5)
        self.shift = nn.Parameter(torch.randn(1, 8) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 5]``."""
        y = torch.relu(self.stem(x)).mean((2, 3)) + self.shift.expand(len(x), -1)
        return self.head(y)  # type: ignore[no-any-return]


def test_a_fixed_batch_is_calibrated_in_whole_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Fixed().eval(), images(24)
    made = pe.export(model, tmp_path, ["litert_int8"], example_inputs=x[:4], data=x.reshape(4, 6, 3, 16, 16))
    assert made["litert_int8"].verification.ok
    with pytest.raises(ExportError, match="batches of 4 samples, and the data holds 3 at most"):
        pe.export(model, tmp_path, ["litert_int8"], example_inputs=x[:4], data=x.reshape(8, 3, 3, 16, 16))
