"""Samples read for calibration and samples spared for judging it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from penjing.errors import QuantizeError
from penjing.export.onnx import export_onnx
from penjing.quantize import quantize
from penjing.quantize.feeds import Feeds, InputSpec
from penjing.quantize.runtime import Session
from penjing.quantize.scheme import decibels


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(0, 5),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([None, 2]),
)
def test_every_sample_is_fitted_to_or_judged_by_and_none_is_both(
    sizes: list[int], samples: int, held: int, fixed: int | None, step: int | None
) -> None:
    values = np.split(np.arange(sum(sizes), dtype=np.float32)[:, None], np.cumsum(sizes)[:-1])
    data = [(part, part[:, 0].astype(np.int64)) for part in values]
    feeds = Feeds(data, (InputSpec("x", (fixed, 1), np.dtype(np.float32)),), samples, held)
    full = max(size // (fixed or 1) for size in sizes) > 0
    if fixed and not full:
        return
    # of a fixed batch size what does not fill one is left out of each batch
    left = max(samples, fixed or 0)
    read: list[float] = []
    for part in values:
        count = min(len(part), left - len(read)) // (fixed or 1) * (fixed or 1)
        read += part[:count, 0].tolist()
    parts: dict[bool, list[float]] = {False: [], True: []}
    for judged, source in ((False, feeds), (True, feeds.spared())):
        for feed, target in source.batches(step, targets=True) if source else ():
            x = feed["x"][:, 0]
            assert target is not None
            assert x.tolist() == target.tolist()
            assert len(x) == fixed if fixed else len(x) <= (step or 9)
            parts[judged] += x.tolist()
    assert sorted(parts[False] + parts[True]) == read
    units = len(read) // (fixed or 1)
    if not fixed and len(read) == samples:
        assert len(parts[False]) == feeds.most
    assert len(parts[True]) == min(units // 4, -(-held // (fixed or 1))) * (fixed or 1)


def test_numbers_that_an_integer_input_cannot_hold_are_told() -> None:
    """Pixels in [0, 1] would all become zero, and everything would be calibrated to that."""
    specs = (InputSpec("image", (None, 2), np.dtype(np.uint8)),)
    whole = np.array([[3.0, 255.0]], np.float32)
    ((read, _),) = Feeds([whole], specs, 1, 0).batches(None)
    assert read["image"].dtype == np.uint8
    assert (read["image"] == whole).all()
    for wrong in ([[0.5, 0.25]], [[-1.0, 2.0]], [[np.nan, 1.0]]):
        with pytest.raises(QuantizeError, match="uint8 cannot hold"):
            list(Feeds([np.array(wrong, np.float32)], specs, 1, 0).batches(None))


def test_what_is_told_holds_on_other_samples(tmp_path: Path) -> None:
    """Ranges and roundings fitted to 32 samples of long tails look 10 dB better on those samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    x = torch.randn(96, 128)
    fp32 = export_onnx(net.eval(), tmp_path / "fp32.onnx", x[:2], dynamic_batch="auto")
    made = quantize(
        fp32, [x[at : at + 8] for at in range(0, 32, 8)], out=tmp_path / "int8.onnx", time_it=False
    )
    wanted, found = (Session(path).run({"input": x[32:].numpy()}) for path in (fp32, made.path))
    ((_, there),), ((_, here),) = wanted.items(), found.items()
    fresh = decibels(float(np.square(there).sum()), float(np.square(here - there).sum()))
    assert abs(made.sqnr_db - fresh) < 4
    few = quantize(fp32, [x[:3]], out=tmp_path / "few.onnx", time_it=False)
    assert any("flatters" in note for note in few.notes)
    assert not any("flatters" in note for note in made.notes)


@given(st.integers(1, 5), st.integers(16, 80), st.booleans())
def test_samples_in_order_of_their_classes_are_told(classes: int, each: int, more: bool) -> None:
    labels = np.repeat(np.arange(classes), each)
    count = len(labels) - 16 * more

    def told(labels: np.ndarray) -> str:
        parts = np.split(labels, range(16, len(labels), 16))
        data = [(np.zeros((len(part), 1), np.float32), part) for part in parts]
        return Feeds(data, (InputSpec("x", (None, 1), np.dtype(np.float32)),), count).sorted_by_class()

    assert ("class by class" in told(labels)) == (more and count >= 32)
    if classes > 1:
        assert told(labels[::-1].copy()) == ""
    assert told(labels.astype(np.float32)) == ""


@pytest.mark.parametrize("kind", [torch.float64, torch.uint8])
def test_data_in_a_format_that_the_module_does_not_take(kind: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    data = [(torch.rand(8, 12) * 50).to(kind) for _ in range(2)]
    with pytest.raises(QuantizeError, match=rf"does not take data of {str(kind)[6:]}.*x\.float\(\)"):
        quantize(model, data, out=tmp_path / "m.onnx")


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_samples_that_cannot_be_are_told_with_their_place(mode: str, tmp_path: Path) -> None:
    """Values whose squares overflow ended in a message of a matrix library; a batch of no samples ended the
    reading, so that later ones were not seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = [torch.randn(8, 6) for _ in range(6)]
    wild = [x.clone() for x in data]
    wild[2][1, 3] = 1e30
    with pytest.raises(QuantizeError, match=r"inputs reach 1e\+30") as told:
        quantize(model, wild, {"mode": mode}, out=tmp_path / "m.onnx", time_it=False)
    assert told.value.layer == "0"
    holed = [*data[:3], data[0][:0], *data[3:]]
    with pytest.raises(QuantizeError, match="batch 3 has no samples"):
        quantize(model, holed, {"mode": mode}, out=tmp_path / "m.onnx", time_it=False)
