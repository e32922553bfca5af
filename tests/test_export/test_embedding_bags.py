"""Bags of embeddings: equal rows of a table, and flat lists with offsets, in every mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.export import export_onnx

ROWS, PAD = 20, 3


class Bags(nn.Module):
    def __init__(self, mode: str, padding_idx: int | None, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(ROWS, 6, mode=mode, padding_idx=padding_idx, include_last_offset=last)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        out: Tensor = self.head(self.bag(x, offsets, weights))
        return out


CASES = [(mode, pad) for mode in ("sum", "mean", "max") for pad in (None, PAD)]


@pytest.mark.parametrize(("mode", "pad"), CASES)
def test_rows_of_a_table_in_all_formats(mode: str, pad: int | None, tmp_path: Path) -> None:
    x = torch.randint(0, ROWS, (4, 5), generator=torch.Generator().manual_seed(1))
    x[1] = PAD  # a bag of padding alone
    formats = ("onnx", "saved_model", "litert") if (mode, pad) == ("max", PAD) else ("onnx",)
    made = pj.export(Bags(mode, pad).eval(), tmp_path / "out", formats=formats, example_inputs=x)
    assert [file.format for file in made.files] == list(formats)
    for file in made.files:
        assert file.verification.relative < 1e-5
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]
    ops = {node.op_type for node in onnx.load(made.files[0].path).graph.node}
    assert not ops & {"Loop", "SequenceEmpty"}


@pytest.mark.parametrize(("mode", "pad"), CASES)
@pytest.mark.parametrize("last", [False, True])
def test_flat_lists_with_offsets(mode: str, pad: int | None, last: bool, tmp_path: Path) -> None:
    x = torch.tensor([1, 7, 3, 3, 19, 0, 0, 5, 2, 11, 3, 3])
    offsets = torch.tensor([0, 3, 3, 9, *([12] if last else [])])  # the second is empty
    given = {"x": x, "offsets": offsets}
    if mode == "sum":
        given["weights"] = torch.linspace(-1, 1, len(x))
    model = Bags(mode, pad, last).eval()
    path = export_onnx(model, tmp_path / "bags.onnx", given, dynamic_batch=False)
    feeds = {name: value.numpy() for name, value in given.items()}
    with torch.no_grad():
        wanted = model(**given)
    found = onnxruntime.InferenceSession(str(path)).run(None, feeds)[0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)
