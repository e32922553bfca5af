from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from nets import Vgg, batches, trained_stats
from torch import nn

import penjing as pj
from penjing.errors import QuantizeError
from penjing.quantize import QuantizeConfig, load_quantized, prune_quantized, quantize
from penjing.quantize.cpu import sums_pairs_in_16_bits
from penjing.quantize.pack import read_quantized
from penjing.quantize.slice import slice_quantized


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, pj.PruneResult, Path]:
    """A network, its pruning, and its quantized weights."""
    folder = tmp_path_factory.mktemp("s")
    model, data = trained_stats(Vgg()), batches(2)
    pruned = pj.prune(model, torch.from_numpy(data[0][:2]), ratio=0.5)
    made = quantize(model, data, QuantizeConfig(equalize=False), out=folder / "q.onnx", time_it=False)
    return model, pruned, made.weights_path


def test_slices_of_scales_are_scales_of_slices(parts: tuple[nn.Module, pj.PruneResult, Path]) -> None:
    """Steps, zero points and biases are those of the kept outputs, weights what the plan slices."""
    _, pruned, path = parts
    header, tensors = read_quantized(path)
    sliced = slice_quantized(pruned.plan, tensors, header)
    floats = load_quantized(path)
    for row in header["layers"]:
        weight = row["weight"]
        kept = list(pruned.plan.tensors.get(weight, {}).get(0, range(len(tensors[f"{weight}.scale"]))))
        for name in (f"{weight}.scale", f"{weight}.zero_point", row["bias"], f"{row['bias']}.scale"):
            np.testing.assert_array_equal(sliced[name], tensors[name][kept])
        wanted = pruned.plan.slice_tensor(weight, torch.from_numpy(floats[weight].copy())).numpy()
        shape = [-1] + [1] * (wanted.ndim - 1)
        found = sliced[weight].astype(np.float32) * sliced[f"{weight}.scale"].reshape(shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert {n: a for n, a in sliced.items() if n.startswith("activation:")}.keys() == {
        n for n in tensors if n.startswith("activation:")
    }


def test_the_file_of_a_quantized_then_pruned_network(
    parts: tuple[nn.Module, pj.PruneResult, Path], tmp_path: Path
) -> None:
    _, pruned, path = parts
    header, tensors = read_quantized(path)
    sliced = slice_quantized(pruned.plan, tensors, header)
    made = prune_quantized(
        pruned.plan, path, pruned.model, batches(2), out=tmp_path / "qp.onnx", recalibrate=False
    )
    again = read_quantized(made.weights_path)[1]
    for row in header["layers"]:
        weight = row["weight"]
        np.testing.assert_array_equal(again[f"{weight}.scale"], sliced[f"{weight}.scale"])
        np.testing.assert_array_equal(
            again[f"activation:{row['scale_of']}.scale"], tensors[f"activation:{row['scale_of']}.scale"]
        )
        moved = again[weight].astype(int) != sliced[weight]
        assert not moved.any() or (sums_pairs_in_16_bits() and moved.mean() < 0.05)
    x = torch.from_numpy(batches(1, 32, seed=9)[0])
    assert made.sqnr_db > 20  # against the slices in float
    assert made.num_quantized == 4
    assert pruned.model(x).shape == (32, 10)


class Stream(nn.Module):
    """Residual blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


def test_neighbours_that_overflow_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that become neighbours are held back where pairs add up in 16 bits."""
    monkeypatch.setattr("penjing.quantize.job.sums_pairs_in_16_bits", lambda: True)
    torch.manual_seed(0)
    model, data = Stream().eval(), [torch.randn(16, 3, 16, 16) for _ in range(2)]
    config = QuantizeConfig(equalize=False, align_inputs=False)
    path = quantize(model, data, config, out=tmp_path / "q.onnx", time_it=False).weights_path
    pruned = pj.prune(model, data[0], ratio=0.5)
    axes = {"*": {2: "height", 3: "width"}}
    found = {}
    for again in (True, False):
        made = prune_quantized(
            pruned.plan,
            path,
            pruned.model,
            data,
            out=tmp_path / "qp.onnx",
            recalibrate=again,
            dynamic_axes=axes,
        )
        found[again] = made.sqnr_db
        assert not any("other weights" in note for note in made.notes)
    assert found[True] > found[False] + 6
    x = torch.randn(4, 3, 20, 12)
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    answer = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        assert np.abs(answer - pruned.model(x).numpy()).max() < 0.2


class Words(nn.Module):
    """Linears over sequences, whose weights the exporter turns; with an LSTM, which it puts together."""

    def __init__(self, recurrent: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True) if recurrent else None
        self.up, self.down, self.head = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        if self.lstm is not None:
            x = self.lstm(x)[0]
        found: torch.Tensor = self.head(x + self.down(self.up(x).relu()))
        return found


def test_linears_over_sequences_are_sliced(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Words().eval(), [torch.randint(0, 60, (8, 12)) for _ in range(4)]
    config = QuantizeConfig(equalize=False, align_inputs=False)
    path = quantize(model, data, config, out=tmp_path / "q.onnx", time_it=False).weights_path
    assert {"table.weight", "up.weight", "down.weight", "head.weight"} <= read_quantized(path)[1].keys()
    pruned = pj.prune(model, data[0], ratio=0.4)
    made = prune_quantized(pruned.plan, path, pruned.model, data, out=tmp_path / "qp.onnx")
    assert made.num_quantized == 4
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    answer = session.run(None, {session.get_inputs()[0].name: data[0].numpy()})[0]
    with torch.no_grad():
        wanted = pruned.model(data[0]).numpy()
    assert np.square(answer - wanted).mean() < 1e-3 * np.square(wanted).mean()


def test_weights_that_the_exporter_puts_together_are_refused_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Words(recurrent=True).eval(), [torch.randint(0, 60, (8, 12)) for _ in range(4)]
    config = QuantizeConfig(equalize=False, align_inputs=False)
    path = quantize(model, data, config, out=tmp_path / "q.onnx", time_it=False).weights_path
    pruned = pj.prune(model, data[0], ratio=0.4)
    with pytest.raises(QuantizeError, match=r"lstm.* put together .* Prune the float network"):
        prune_quantized(pruned.plan, path, pruned.model, data, out=tmp_path / "qp.onnx")


def test_weights_that_are_not_in_the_file_are_told(
    parts: tuple[nn.Module, pj.PruneResult, Path], tmp_path: Path
) -> None:
    _, pruned, path = parts
    recovered = copy.deepcopy(pruned.model)
    with torch.no_grad():
        for weight in recovered.parameters():
            weight.mul_(1.2)
    made = prune_quantized(pruned.plan, path, recovered, batches(2), out=tmp_path / "qp.onnx")
    assert any("the pruned network has other weights" in note for note in made.notes)


def test_weights_of_another_network_are_refused(
    parts: tuple[nn.Module, pj.PruneResult, Path], tmp_path: Path
) -> None:
    _, pruned, _ = parts
    other = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    made = quantize(other, batches(1, shape=(6,)), out=tmp_path / "o.onnx", time_it=False)
    with pytest.raises(QuantizeError, match="does not know this weight"):
        prune_quantized(pruned.plan, made.weights_path, pruned.model, batches(1), out=tmp_path / "qp.onnx")


def test_weights_of_other_options_are_refused_with_the_remedy(
    parts: tuple[nn.Module, pj.PruneResult, Path], tmp_path: Path
) -> None:
    model, pruned, _ = parts
    spread = np.array([200, 210, 220])[:, None, None]
    images = [(np.random.default_rng(0).integers(0, 256, (16, 3, 16, 16)) / spread).astype(np.float32) - 0.5]
    for config, text in (
        (QuantizeConfig(equalize=False), "align_inputs=False"),
        (QuantizeConfig(mode="dynamic"), "only weights were quantized"),
    ):
        made = quantize(model, images, config, out=tmp_path / "q.onnx", time_it=False)
        with pytest.raises(QuantizeError, match=text):
            prune_quantized(pruned.plan, made.weights_path, pruned.model, images, out=tmp_path / "qp.onnx")


class Tokens(nn.Module):
    """A table of embeddings, two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.head = nn.Embedding(80, 32), nn.Linear(32, 48), nn.Linear(48, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.up(self.table(tokens))))
        return out


@pytest.mark.parametrize("recalibrate", [False, True])
def test_tables_keep_their_levels_and_steps(recalibrate: bool, tmp_path: Path) -> None:
    """Their steps were found anew, so what was rounded was rounded once more."""
    torch.manual_seed(0)
    model, data = Tokens().eval(), [torch.randint(0, 80, (8, 12)) for _ in range(4)]
    pruned = pj.prune(model, data[0], ratio=0.5)
    options = QuantizeConfig(equalize=False, align_inputs=False)
    first = quantize(model, data, options, out=tmp_path / "q.onnx", time_it=False).weights_path
    header, tensors = read_quantized(first)
    made = prune_quantized(
        pruned.plan, first, pruned.model, data, out=tmp_path / "p.onnx", recalibrate=recalibrate
    )
    again, sliced = read_quantized(made.weights_path)[1], slice_quantized(pruned.plan, tensors, header)
    assert again["table.weight"].shape[1] < 32
    for name in ("table.weight", "table.weight.scale"):
        np.testing.assert_array_equal(again[name], sliced[name])


def test_constants_that_the_exporter_put_together_are_the_pruned_networks(tmp_path: Path) -> None:
    """A norm over all channels scales by such a one, which no plan names: it was refused."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(1, 16),
        nn.Conv2d(16, 8, 1),
        nn.Flatten(),
        nn.Linear(512, 5),
    ).eval()
    with torch.no_grad():
        model.get_parameter("1.weight").uniform_(0.5, 2.0)
        model.get_parameter("1.bias").uniform_(-1.0, 1.0)
    data = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    options = QuantizeConfig(equalize=False, align_inputs=False)
    whole = quantize(model, data, options, out=tmp_path / "whole.onnx", time_it=False)
    pruned = pj.prune(model, data[0], ratio=0.4)
    made = prune_quantized(pruned.plan, whole.weights_path, pruned.model, data, out=tmp_path / "small.onnx")
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: data[0].numpy()})[0]
    with torch.no_grad():
        wanted = pruned.model(data[0]).numpy()
    assert 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()) > 25
    assert any("constants made on export" in note for note in made.notes)
