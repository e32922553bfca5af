"""Ops along some axes of tensors with more dimensions than the runtimes' kernels know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_models import needs_tensorflow
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.errors import VerifyError

pytestmark = [pytest.mark.tf, needs_tensorflow]


class Seven(nn.Module):
    """A layer whose channels are laid out in six dimensions beside the batch."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.what = nn.Linear(5, 2 * 3 * 2 * 3 * 2 * 3), what

    def forward(self, x: Tensor) -> Any:
        return self.what(self.layer(x).view(-1, 2, 3, 2, 3, 2, 3))


X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))

NORMAL = {
    "softmax": lambda x: (x.softmax(3), x.softmax(-1), x.log_softmax(2)),
    "reductions": lambda x: (x.sum((1, 4)), x.mean(3, keepdim=True), x.amax(2), x.std(3), x.logsumexp(5)),
    "norms": lambda x: (F.layer_norm(x, x.shape[-2:]), F.normalize(x, dim=3)),
    "parts": lambda x: (
        x[:, :, 1:, :, ::2],
        x.roll((1, 1), (2, 4)),
        x.flip((3, 5)),
        F.pad(x, (1, 0, 0, 1, -1, 1)),
    ),
    "joins": lambda x: (torch.cat([x, 2 * x[:, :, :, :1]], 3), torch.stack([x, x], 3)),
    "products": lambda x: x @ x.mT,
}


@pytest.mark.parametrize("what", NORMAL)
def test_seven_dimensions_reach_both_formats(what: str, tmp_path: Path) -> None:
    model = Seven(NORMAL[what]).eval()
    made = pj.export(model, tmp_path, ("saved_model", "litert"), example_inputs=X)
    for file in made.files:
        assert file.verification.relative < 1e-5
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]


def test_any_axes_give_the_same() -> None:
    from penjing.export.tf_ops.backend import tf
    from penjing.export.tf_ops.few import in_few

    rng = np.random.default_rng(0)
    for _ in range(100):
        sizes = [int(s) for s in rng.integers(1, 4, rng.integers(1, 9))]
        axes = sorted(int(a) for a in rng.permutation(len(sizes))[: rng.integers(1, len(sizes) + 1)])
        x = rng.normal(size=sizes)
        found = in_few(lambda ts, at: tf.reduce_sum(ts[0], at, keepdims=True), [tf.constant(x)], axes).numpy()
        assert found.shape == x.sum(tuple(axes), keepdims=True).shape
        assert np.allclose(found, x.sum(tuple(axes), keepdims=True))


def test_what_the_runtime_cannot_compute_is_told_in_its_words(tmp_path: Path) -> None:
    """TensorFlow writes such a file without a word."""
    model = Seven(lambda x: x * x[:, :1, :, :1, :, :1]).eval()
    with pytest.raises(VerifyError, match="cannot run the file: UnimplementedError: Broadcast between"):
        pj.export(model, tmp_path / "out", ("saved_model",), example_inputs=X)
    assert list(tmp_path.iterdir()) == []
