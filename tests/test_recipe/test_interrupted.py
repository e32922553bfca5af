"""What a session that was interrupted leaves to the next one, with one's own network and loaders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from vector_data import halves

import penjing as pj
from penjing.events import Event
from penjing.recipe.stages import pruning, searching


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


def loaders(own: bool) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """They shuffle, by generators of their own or by the global one."""

    def loader(count: int, seed: int) -> DataLoader[Any]:
        x_NF, y_N = (torch.cat(parts) for parts in zip(*halves(count, seed), strict=True))
        generator = torch.Generator().manual_seed(seed) if own else None
        return DataLoader(TensorDataset(x_NF, y_N), 20, shuffle=True, generator=generator)

    return loader(200, 0), loader(100, 1)


def session(folder: Path, data: Any, stage: str, kind: str = "start", **arguments: Any) -> None:
    """One that is interrupted at an event of a stage."""

    def listen(event: Event) -> None:
        if (event.stage, event.kind) == (stage, kind) and event.metrics.get("epoch", 1) == 1:
            raise KeyboardInterrupt

    model = network()
    torch.seed()  # what a process has drawn before is its own
    with pytest.raises(KeyboardInterrupt):
        pj.compress(
            model,
            data,
            budget=pj.Budget(params=0.3),
            recover=pj.RecoverConfig(epochs=2, lr=0.02),
            quantize=False,
            formats=("onnx",),
            options={"data": {"calibration": 64}},
            out=folder,
            resume=True,
            listen=listen,
            **arguments,
        )


def outcome(folder: Path) -> dict[str, Any]:
    """What the stages reported, and hashes of what they wrote."""
    markers = [json.loads(path.read_text()) for path in (folder / "work" / "stages").glob("*.json")]
    return {one["stage"]: (one["key"], one["result"], one["files"]) for one in markers}


@pytest.mark.parametrize("own", [True, False], ids=["own generators", "the global generator"])
def test_loaders_that_shuffle_give_the_same_after_an_interruption(own: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_drop": None, "prune": {"reconstruct": True}}
    data = loaders(own)
    before = [one.generator.get_state() for one in data if one.generator is not None]
    session(tmp_path / "whole", data, "export", **options)
    after = [one.generator.get_state() for one in data if one.generator is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for stage, kind in [("prune", "start"), ("recover", "metric"), ("export", "start")]:
        session(tmp_path / "run", loaders(own), stage, kind, **options)
    assert outcome(tmp_path / "run").keys() == {"train", "prune", "recover"}
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_trial_interrupted_in_its_recovery_is_not_pruned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another measured latency would make another network of it, and the checkpoint is of this one."""
    pruned: list[str] = []
    prune = pruning.prune_round

    def counted(*args: Any, **kwargs: Any) -> Any:
        pruned.append(kwargs["mark"])
        return prune(*args, **kwargs)

    monkeypatch.setattr(searching, "prune_round", counted)
    data = (halves(200, 0), halves(100, 1))
    session(tmp_path, data, "search", "metric", max_drop=1.0)
    session(tmp_path, data, "export", max_drop=1.0)
    assert pruned == ["-try1"]
    assert not [*(tmp_path / "work" / "checkpoints").iterdir()]
