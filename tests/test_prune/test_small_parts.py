"""Schedule, sparsity, and the exact cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from penjing.errors import PruneError
from penjing.prune import schedule, sparsify
from penjing.prune.sparsity import nm_mask, unstructured_mask


@given(
    ratio=st.floats(0, 0.95),
    rounds=st.integers(1, 12),
    kind=st.sampled_from(["one-shot", "iterative", "agp"]),
)
def test_rounds_reach_the_ratio(ratio: float, rounds: int, kind: str) -> None:
    steps = schedule(ratio, rounds, kind)  # type: ignore[arg-type]
    assert np.prod([1 - s for s in steps]) == pytest.approx(1 - ratio)
    assert all(0 <= s < 1 for s in steps)
    assert len(steps) == (1 if kind == "one-shot" else rounds)


def test_schedule_errors() -> None:
    for bad in ((1.0, 3, "agp"), (0.5, 0, "agp"), (0.5, 2, "other")):
        with pytest.raises(PruneError):
            schedule(*bad)


@given(ratio=st.floats(0, 0.99), rows=st.integers(1, 6), columns=st.integers(1, 9))
def test_unstructured_counts_are_exact(ratio: float, rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns)
    mask = unstructured_mask(weight, ratio)
    assert int((~mask).sum()) == int(ratio * weight.numel() + 1e-9)
    if mask.any() and not mask.all():
        assert weight[~mask].abs().max() <= weight[mask].abs().min()


def test_nm_keeps_n_of_m() -> None:
    weight = torch.randn(4, 8, 3, 3)
    mask = nm_mask(weight, 2, 4)
    assert (mask.flatten(1).reshape(4, -1, 4).sum(-1) == 2).all()
    with pytest.raises(PruneError, match="multiple"):
        nm_mask(torch.randn(3, 5), 2, 4)
    with pytest.raises(PruneError, match="0 < n"):
        nm_mask(torch.randn(3, 8), 5, 4)


def test_sparsify() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    result = sparsify(model, nm=(2, 4))
    assert result.zeros == {"0.weight": 16, "1.weight": 6}
    assert result.to_dict()["layers"]["0.weight"] == {"zeros": 16, "size": 32}
    assert sparsify(model, 0.25).zeros == {"0.weight": 8, "1.weight": 3}
    assert all((p != 0).all() for p in model.parameters())
    with pytest.raises(PruneError, match="ratio"):
        sparsify(model, 1.0)


@pytest.mark.parametrize("groups", [1, 2])
def test_nm_of_a_transposed_convolution_goes_along_its_inputs(groups: int) -> None:
    layer = nn.ConvTranspose2d(8, 6, 3, groups=groups)
    result = sparsify(layer, nm=(1, 4))
    by_group = result.masks["weight"].reshape(groups, -1, 6 // groups, 9)  # [groups, in, out, kernel]
    rows = by_group.transpose(1, 2).reshape(6, -1, 4)
    assert (rows.sum(-1) == 1).all()
    odd = sparsify(nn.ConvTranspose2d(3, 4, 1, bias=False), nm=(2, 4))
    assert odd.notes == ("weight is left out: its fan-in is not a multiple of 4",)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_is_copied_and_masked() -> None:
    model = nn.utils.weight_norm(nn.Linear(8, 4))
    model(torch.randn(2, 8))
    assert sparsify(model, 0.25).zeros["weight_v"] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nm": "2:4"}, r"nm is '2:4'"),
        ({"nm": (2,)}, r"nm is \(2,\)"),
        ({"nm": 4}, r"nm is 4"),
        ({"nm": (2.0, 4)}, r"whole numbers"),
        ({"ratio": "0.5"}, r"ratio '0\.5'"),
        ({"model": None}, r"model is a NoneType"),
    ],
)
def test_bad_options_of_sparsify_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PruneError, match=words):
        sparsify(**{"model": nn.Linear(4, 4), **options})
