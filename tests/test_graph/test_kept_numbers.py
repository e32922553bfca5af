"""Paddings computed from numbers in buffers, as audio codecs do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.graph import trace
from penjing.prune.masked import masked_equivalence


class Strided(nn.Module):
    """A convolution that pads what its stride leaves over; small inputs get zeros before they reflect."""

    stride: Tensor
    kernel_size: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, size, stride)
        self.register_buffer("stride", torch.tensor(stride), persistent=False)
        self.register_buffer("kernel_size", torch.tensor(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length, before = x.shape[-1], self.kernel_size - self.stride
        frames = torch.ceil((length - self.stride) / self.stride + 1).to(torch.int64) - 1
        after = frames * self.stride + self.stride - length
        widest, extra = max(before, after), 0
        if length <= widest:
            extra = int(widest) - length + 1
            x = F.pad(x, (0, extra))
        x = F.pad(x, (before, after), mode="reflect")  # type: ignore[arg-type]
        made: Tensor = self.conv(x[..., : x.shape[-1] - extra])
        return made


def codec() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Strided(1, 8, 5, 2), nn.ELU(), Strided(8, 8, 4, 3), nn.ELU(), nn.Conv1d(8, 3, 1))


def test_numbers_in_buffers_are_constants_of_the_trace(tmp_path: Path) -> None:
    model, x = codec().eval(), torch.randn(2, 1, 101)
    graph = trace(model, x)
    assert graph.batch_dim
    assert any("numbers in buffers" in note and "0.stride" in note for note in graph.notes)
    torch.testing.assert_close(graph(x), model(x))
    assert "stride" not in vars(model[0])  # nothing of the trace is left behind

    result = pj.prune(model, x, ratio=0.5)
    assert result.in_place
    assert result.after["params"] < 0.5 * result.before["params"]
    assert masked_equivalence(model, result, x) < 1e-5
    made = pj.export(result.model, tmp_path, ("onnx",), example_inputs=x)
    assert made.ok


def test_a_forward_that_counts_is_no_such_case() -> None:
    class Counts(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            made: Tensor = self.layer(x)
            return made

    model = Counts().eval()
    assert not trace(model, torch.randn(2, 4)).notes
    assert int(model.calls) == 0
