"""A user's own criterion and observer are found by name, also after others have been used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import penjing as pj
from penjing.graph import Member
from penjing.prune.criteria import Material, MemberCriterion, Scores, base, criterion, slot_sums
from penjing.quantize import observers
from penjing.quantize.observe.min_max import MinMax

X = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    pj.prune(network(), X, criterion="magnitude")
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


@pytest.mark.usefixtures("registry")
def test_a_criterion_that_is_registered_late() -> None:
    @criterion("smallest first")
    @dataclass(frozen=True)
    class Sums(MemberCriterion):
        def member_scores(self, member: Member, material: Material) -> Scores:
            weight = material.tensor(member.tensor).abs()
            return slot_sums(member, weight.movedim(member.dim, 0).flatten(1).sum(1))

    by_name = pj.prune(network(), X, criterion="smallest first").plan
    by_itself = pj.prune(network(), X, criterion=Sums()).plan
    assert by_name.groups == by_itself.groups
    recipe = {"data": {"spec": "glyphs"}, "model": {"spec": "penjing:mlp"}}
    assert pj.Recipe.parse({**recipe, "prune": {"ratio": 0.5, "criterion": "smallest first"}})


def test_an_observer_that_is_defined_late(tmp_path: Path) -> None:
    assert "doubled" not in observers()

    class Doubled(MinMax):
        name: ClassVar[str] = "doubled"

        def range(self) -> tuple[float, float]:
            low, high = super().range()
            return 2 * low, 2 * high

    assert observers()["doubled"] is Doubled
    quiet = {"observer": "doubled"}
    wide = pj.quantize(network(), [X], quiet, out=tmp_path / "a.onnx", time_it=False)
    plain = pj.quantize(network(), [X], {"observer": "min_max"}, out=tmp_path / "b.onnx", time_it=False)
    assert wide.sqnr_db < plain.sqnr_db - 2
    Doubled.name = "gone"  # classes live until they are collected
    assert wide.db_samples == plain.db_samples > 0
    assert f"dB against fp32 (n={wide.db_samples})" in str(wide)
