"""Packed sequences are followed as padded ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import penjing as pj
from penjing.errors import TraceError
from penjing.graph import trace
from penjing.prune.masked import masked_equivalence


class Classifier(nn.Module):
    """Last states, and last cells, of sequences in any order."""

    def __init__(self, cell: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 10)
        self.walk = nn.LSTM(10, 12, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)
        self.cell = cell

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.table(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states = self.walk(packed)[1][1 if self.cell else 0]
        found: Tensor = self.head(torch.cat([states[-2], states[-1]], 1))
        return found


class Tagger(nn.Module):
    """Every step, of sequences that were given sorted; what is packed is computed with between layers."""

    def __init__(self, kind: Callable[..., nn.RNNBase] = nn.GRU, *, whole: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 10)
        self.first = kind(10, 12)
        self.second = nn.GRU(12, 8, bidirectional=True)
        self.head = nn.Linear(16, 3)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x != 0).sum(1)
        packed = self.first(pack_padded_sequence(self.table(x).transpose(0, 1), lengths))[0]
        packed = PackedSequence(torch.tanh(packed.data), packed.batch_sizes)
        total = x.shape[1] if self.whole else None
        padded, found = pad_packed_sequence(self.second(packed)[0], padding_value=0.5, total_length=total)
        scores: Tensor = self.head(padded)
        return scores.transpose(0, 1) * found[:, None, None]


class AsPacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.walk = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        found: Tensor = self.walk(pack_padded_sequence(x, lengths, batch_first=True))[0].data
        return found


def tokens(*lengths: int, steps: int = 7) -> Tensor:
    x = torch.randint(1, 20, (len(lengths), steps), generator=torch.Generator().manual_seed(0))
    return x.where(torch.arange(steps) < torch.tensor(lengths)[:, None], 0)


def sequences() -> tuple[Tensor, Tensor]:
    return tokens(3, 7, 5), torch.tensor([3, 7, 5])


@pytest.mark.parametrize("cell", [False, True])
def test_a_graph_answers_as_the_network_for_any_lengths(cell: bool) -> None:
    model = Classifier(cell).eval()
    graph = trace(model, sequences())
    assert graph.batch_dim
    for lengths in ([3, 7, 5], [2, 1], [7, 7, 6, 1]):
        given = tokens(*lengths), torch.tensor(lengths)
        torch.testing.assert_close(graph(*given), model(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_steps_are_padded_as_torch_pads_them(kind: Callable[..., nn.RNNBase]) -> None:
    model = Tagger(kind).eval()
    graph = trace(model, tokens(7, 4))
    assert graph.batch_dim
    for lengths in ([7, 4], [5, 2, 1]):
        torch.testing.assert_close(graph(tokens(*lengths)), model(tokens(*lengths)), rtol=1e-5, atol=1e-6)


def test_the_class_is_kept_and_a_file_takes_other_lengths(tmp_path: Path) -> None:
    model = Classifier().eval()
    result = pj.prune(model, sequences(), ratio=0.4)
    assert result.in_place
    assert masked_equivalence(model, result, sequences()) < 1e-5
    done = pj.export(result.model, tmp_path, ("onnx",), example_inputs=sequences())["onnx"]
    given = tokens(2, 6), torch.tensor([2, 6])
    import onnxruntime as ort

    session = ort.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    names = [found.name for found in session.get_inputs()]
    (answer,) = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    torch.testing.assert_close(torch.from_numpy(answer), result.model(*given), rtol=1e-4, atol=1e-5)


def test_sizes_that_follow_from_lengths_are_refused() -> None:
    with pytest.raises(TraceError, match="follows from their lengths"):
        trace(AsPacked(), (torch.randn(2, 5, 4), torch.tensor([5, 3])))
    with pytest.raises(TraceError, match="the longest fills its rows"):
        trace(Tagger(whole=False), tokens(6, 4))
    assert trace(Tagger(whole=False), tokens(7, 4)).batch_dim


def test_torch_packs_as_before() -> None:
    trace(Classifier(), sequences())
    packed = pack_padded_sequence(torch.randn(2, 5, 4), torch.tensor([5, 3]), batch_first=True)
    assert packed.data.shape == (8, 4)
    assert packed.batch_sizes.tolist() == [2, 2, 2, 1, 1]
    with pytest.raises(RuntimeError, match="hidden"):
        nn.GRU(4, 6)(packed, torch.zeros(1, 3, 6))
