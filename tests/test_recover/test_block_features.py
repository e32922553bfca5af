"""What the blocks of a pruned network give is compared with the right part of what the original's give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from recover_kit import CLASSES, Batches, equal
from torch import Tensor, nn

from penjing.errors import RecoverError
from penjing.graph import GraphModel
from penjing.prune import Plan, PruneResult, apply, prune
from penjing.recover import RecoverConfig, recover
from penjing.recover.blocks import block_specs
from penjing.recover.features import Taps, align

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """x + f(x), with a hidden width of its own."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, hidden, 3, padding=1), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Shuffled(nn.Module):
    """Half of the channels pass, half are worked on; then they are shuffled (ShuffleNet V2's unit)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.work = nn.Sequential(
            nn.Conv2d(width // 2, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, width // 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = x.chunk(2, dim=1)
        both = torch.cat([passed, self.work(worked)], dim=1)
        n, c, h, w = both.shape
        return both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Token(nn.Module):
    """A residual multilayer perceptron on the last dimension, channels last."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        turned = x.movedim(1, -1)
        out: Tensor = turned + self.down(torch.relu(self.up(turned)))
        return out.movedim(-1, 1)


class Net(nn.Module):
    """A stem, blocks of one kind, a head."""

    def __init__(self, block: type[nn.Module], width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList([block(width, 10), block(width, 8)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


KINDS = {"residual": Residual, "shuffled": Shuffled, "token": Token}


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(KINDS[kind]).eval()


def without(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy in which everything that the plan removes is zero."""
    model = copy.deepcopy(model)
    for name, tensor in model.state_dict().items():
        for dim, kept in plan.tensors.get(name, {}).items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[torch.as_tensor(kept)] = False
            tensor.index_fill_(dim, gone.nonzero().flatten(), 0)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.35, 0.5])
def test_where_nothing_is_lost_the_features_are_equal(kind: str, ratio: float) -> None:
    """The original computes with zeros what the pruned network computes without: block for block the same."""
    plan = prune(net(kind), X, ratio=ratio).plan
    original = without(net(kind), plan)
    student = apply(original, plan, X).model.eval()
    specs = block_specs(student, original, plan, X)
    assert [spec.layer for spec in specs] == ["blocks.0", "blocks.1"]
    assert all(spec.kept for spec in specs)
    with Taps(student, specs) as mine, Taps(original, specs) as theirs, torch.no_grad():
        student(X), original(X)
    for spec in specs:
        torch.testing.assert_close(mine.features[spec.key], align(spec, theirs.features[spec.key]))


@pytest.mark.parametrize("kind", KINDS)
def test_recovery_brings_blocks_closer(kind: str) -> None:
    pruned = prune(net(kind), X, ratio=0.5)
    config = RecoverConfig.parse(
        {"epochs": 4, "lr": 0.01, "losses": {"kd": 1.0, "mse": {"weight": 3.0, "layers": "blocks"}}}
    )
    done = recover(pruned.model, net(kind), Batches(), config, plan=pruned.plan)
    assert done.history[-1]["loss_mse"] < 0.8 * done.history[0]["loss_mse"]


def test_a_traced_graph_has_blocks_too() -> None:
    """Of a network that lost a branch the graph comes back; the block that went is not looked for."""
    pruned = prune(net("residual"), X, ratio=0.25, branches=1, data=[X])
    assert isinstance(pruned.model, GraphModel)
    (spec,) = block_specs(pruned.model, net("residual"), pruned.plan, X)
    config = RecoverConfig.parse({"epochs": 2, "losses": {"mse": {"layers": "blocks"}}})
    done = recover(pruned.model, net("residual"), Batches(), config, plan=pruned.plan)
    assert spec.layer in ("blocks.0", "blocks.1")
    assert isinstance(done.model, GraphModel)
    assert done.model(X).shape == (4, CLASSES)


@pytest.mark.parametrize("losses", [{}, {"kd": 1.0, "mse": {"weight": 3.0, "layers": "blocks"}}])
def test_resume_equals_uninterrupted(losses: dict[str, Any], tmp_path: Path) -> None:
    pruned, teacher = prune(net("residual"), X, ratio=0.5), net("residual")
    values: dict[str, Any] = {"losses": losses, "lr": 0.01}
    whole = recover(
        pruned.model, teacher, Batches(), RecoverConfig.parse({**values, "epochs": 2}), plan=pruned.plan
    )

    class Stop(Exception):
        pass

    def stop(event: Any) -> None:
        if event.metrics.get("epoch") == 1:
            raise Stop

    config = RecoverConfig.parse({**values, "epochs": 2})
    with pytest.raises(Stop):
        recover(pruned.model, teacher, Batches(), config, plan=pruned.plan, checkpoint=tmp_path, listen=stop)
    resumed = recover(pruned.model, teacher, Batches(), config, plan=pruned.plan, checkpoint=tmp_path)
    assert equal(whole.model, resumed.model)


def test_where_the_losses_are_not_named_blocks_are_held() -> None:
    """Where there are blocks, and the original is asked in every step anyway."""
    pruned, teacher = prune(net("residual"), X, ratio=0.5), net("residual")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    small = prune(flat, X, ratio=0.5)
    notes: list[str] = []

    def terms(student: PruneResult, original: nn.Module, plan: Plan | None, **options: Any) -> set[str]:
        done = recover(
            student.model,
            original,
            Batches(),
            RecoverConfig(epochs=1, **options),
            plan=plan,
            listen=lambda event: notes.append(event.message),
        )
        return {name for name in done.history[0] if name.startswith("loss_")}

    assert terms(pruned, teacher, pruned.plan) == {"loss_ce", "loss_kd", "loss_mse"}
    assert terms(pruned, teacher, None) == {"loss_ce", "loss_kd"}
    assert terms(pruned, teacher, pruned.plan, distinct_epochs=1) == {"loss_ce", "loss_kd"}
    assert not [note for note in notes if "blocks" in note]
    assert terms(small, flat, small.plan) == {"loss_ce", "loss_kd"}
    assert terms(pruned, Net(Residual, width=16), pruned.plan) == {"loss_ce", "loss_kd"}
    assert len([note for note in notes if "blocks are not held" in note]) == 2


def test_what_cannot_be_lined_up_is_said() -> None:
    pruned, teacher = prune(net("residual"), X, ratio=0.5), net("residual")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    config = RecoverConfig.parse({"epochs": 1, "losses": {"mse": {"layers": "blocks"}}})
    with pytest.raises(RecoverError, match="no blocks in common"):
        recover(flat, flat, Batches(), config)
    with pytest.raises(RecoverError, match="Pass the plan"):
        recover(pruned.model, teacher, Batches(), config)
    with pytest.raises(RecoverError, match="by a plan of penjing"):
        recover(pruned.model, teacher, Batches(), config, plan={})
