"""Fourier transforms of ONNX in TensorFlow and torch, and of torch in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import needs_tensorflow, one_op
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import penjing as pj

Check = Callable[..., None]
RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i64(value: int) -> np.ndarray:
    return np.array(value, np.int64)


@pytest.mark.parametrize("length", [None, 6, 11])
@pytest.mark.parametrize(
    ("options", "channels"),
    [({}, 1), ({}, 2), ({"inverse": 1}, 1), ({"inverse": 1}, 2), ({"onesided": 1}, 1)],
)
def test_dft(options: dict[str, int], length: int | None, channels: int, same_answer: Check) -> None:
    x = f32(2, 8, 3, channels)
    constants = {"axis": i64(1)} if length is None else {"length": i64(length), "axis": i64(-3)}
    order = ["x", "" if length is None else "length", "axis"]
    same_answer(one_op("DFT", {"x": x}, constants=constants, order=order, **options), {"x": x})


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("step", [3, 8])
@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided: int, step: int, window: bool, same_answer: Check) -> None:
    x = f32(2, 40, 1)
    constants = {"step": i64(step), "window" if window else "length": np.hanning(9).astype(np.float32)}
    if not window:
        constants["length"] = i64(9)
    order = ["x", "step", "window"] if window else ["x", "step", "", "length"]
    model = one_op("STFT", {"x": x}, constants=constants, order=order, onesided=onesided)
    same_answer(model, {"x": x})


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40))
@pytest.mark.tf
@needs_tensorflow
def test_there_and_back_is_the_same(length: int) -> None:
    from penjing.export.tf_ops import fourier

    there, back = fourier._waves(length), fourier._waves(length, inverse=True)
    whole = np.tensordot(there, back, ([2, 3], [0, 1])).reshape(2 * length, -1)
    np.testing.assert_allclose(whole, np.eye(2 * length), atol=1e-12)
    half = there[:, :1, : length // 2 + 1]
    real = np.tensordot(half, fourier._half_waves(length), ([2, 3], [0, 1]))
    np.testing.assert_allclose(real.reshape(length, length), np.eye(length), atol=1e-12)


class Spectra(nn.Module):
    """A spectrogram in front, and a filter between a transform of images and its inverse."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.mix, self.filter = nn.Linear(9, 6), nn.Parameter(torch.randn(6, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.stft(x, 16, 8, window=self.window, return_complex=True).abs()
        y = self.mix(seen.transpose(1, 2)).relu()[:, :6, :]
        spectrum = torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(self.filter)
        out: Tensor = torch.fft.irfft2(spectrum, s=(6, 6), norm="ortho")
        return out


@pytest.mark.tf
@needs_tensorflow
def test_a_network_with_transforms_goes_to_every_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = pj.export(
        Spectra().eval(),
        tmp_path,
        formats=("onnx", "saved_model", "litert"),
        example_inputs=torch.randn(3, 80),
    )
    assert made.ok


class Enhancer(nn.Module):
    """A mask over a spectrogram, back in time, beside the phase of the spectrum against its neighbour."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.a, self.b = nn.Conv1d(9, 12, 3, padding=1), nn.Conv1d(12, 9, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.stft(x, 16, 8, window=self.window, return_complex=True)
        mask = self.b(self.a(seen.abs()).relu()).sigmoid()
        turn = seen[..., 1:] * seen[..., :-1].conj()
        return torch.istft(seen * mask, 16, 8, window=self.window), turn.conj().imag


@pytest.mark.tf
@needs_tensorflow
def test_spectra_go_back_to_signals_in_every_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 80)
    pruned = pj.prune(Enhancer(), x, ratio=0.5)
    assert not [frozen for frozen in pruned.frozen if frozen.kind == "unsolved"]
    formats = ("program", "onnx", "saved_model", "litert")
    assert pj.export(pruned.model, tmp_path, formats=formats, example_inputs=x).ok
