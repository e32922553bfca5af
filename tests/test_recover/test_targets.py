"""Targets of every kind: dense, ignored, soft, of other integer types, of other shapes, none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recover_kit import Batches, network
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.batches import logits_of
from penjing.errors import DataError, RecoverError
from penjing.prune import prune
from penjing.prune.gradual import prune_gradually
from penjing.recover import RecoverConfig, recover, train
from penjing.recover.evaluate import evaluate, share_right

K = 3


def quick(**options: Any) -> RecoverConfig:
    return RecoverConfig.parse({"epochs": 1, "precision": "fp32", "lr": 0.01, **options})


def pixels() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, K, 1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, K)

    def forward(self, x_NTC: Tensor) -> Any:
        return self.head(x_NTC + self.fc2(F.relu(self.fc1(x_NTC))))


X_IMAGES, X_TOKENS = torch.randn(8, 1, 6, 6), torch.randn(8, 5, 6)
Y_IMAGES, Y_TOKENS = torch.randint(0, K, (8, 6, 6)), torch.randint(0, K, (8, 5))


@pytest.mark.parametrize(
    ("model", "x", "y"),
    [(pixels(), X_IMAGES, Y_IMAGES), (Tokens(), X_TOKENS, Y_TOKENS)],
    ids=["pixels", "tokens"],
)
@pytest.mark.parametrize("losses", [{}, {"dkd": 1}, {"kd": 1}], ids=str)
def test_dense_classes_are_learned(model: nn.Module, x: Tensor, y: Tensor, losses: dict[str, float]) -> None:
    done = recover(model, model, [(x, y)], quick(losses=losses), val=[(x, y)])
    right, total, _ = evaluate(done.model, [(x, y)])
    assert total == y.numel()
    assert done.history[-1]["val_accuracy"] == right / total
    assert done.history[-1].get("loss_kd", 0.0) == pytest.approx(0, abs=1e-5)  # taught by itself


def test_the_classes_of_tokens_are_the_last_dimension() -> None:
    output, square = torch.randn(8, 5, K), torch.randn(8, K, K)
    assert torch.equal(logits_of(output), output.flatten(0, 1))
    assert torch.equal(logits_of(output, Y_TOKENS), output.flatten(0, 1))
    assert torch.equal(logits_of(output, torch.zeros(8, K)), output.movedim(1, -1).flatten(0, 1))
    assert torch.equal(logits_of(square, torch.zeros(8, K)), square.flatten(0, 1))


def test_what_is_ignored_changes_nothing() -> None:
    y = Y_IMAGES.clone()
    y[:, :3] = 255
    config = quick(ignore_index=255, losses={"ce": 1, "dkd": 1})
    original = pixels()
    with_void = recover(pixels(), original, [(X_IMAGES, y)], config, val=[(X_IMAGES, y)])
    assert with_void.history[-1]["val_n"] == 8 * 18

    logits_NK = logits_of(original(X_IMAGES), y)
    counts_N = y.reshape(-1) != 255
    expected = F.cross_entropy(logits_NK[counts_N], y.reshape(-1)[counts_N])
    assert with_void.history[0]["loss_ce"] == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize("ignored", [255, 0], ids=["no class", "a class"])
def test_accuracies_are_of_what_counts(ignored: int) -> None:
    y, config = Y_IMAGES.clone(), quick(ignore_index=ignored, lr=1e-9)
    y[:, :3] = ignored
    record = train(pixels(), [(X_IMAGES, y)], config, val=[(X_IMAGES, y)]).history[-1]
    found_N, y_N = logits_of(pixels()(X_IMAGES), y).argmax(1), y.reshape(-1)
    wanted = (found_N == y_N)[y_N != ignored].float().mean().item()
    assert record["train_accuracy"] == record["val_accuracy"] == pytest.approx(wanted)
    rounds = prune_gradually(pixels(), X_IMAGES, [(X_IMAGES, y)], [(X_IMAGES, y)], rounds=1, config=config)
    assert rounds.dense_accuracy == record["val_accuracy"]


def test_validation_data_of_which_nothing_counts_is_refused() -> None:
    val = [(X_IMAGES, torch.full_like(Y_IMAGES, 255))]
    with pytest.raises(DataError, match="every label of the validation data is 255"):
        train(pixels(), [(X_IMAGES, Y_IMAGES)], quick(ignore_index=255), val=val)
    with pytest.raises(DataError, match="every label"):
        share_right(pixels(), val, ignored=255)


@pytest.mark.parametrize("options", [{}, {"mixup": 1.0}], ids=["plain", "mixed"])
def test_labels_that_nothing_reads_are_not_looked_at(options: dict[str, float]) -> None:
    data = [(x, y + 250) for x, y in Batches(1)]
    assert recover(network(), network(), data, quick(losses={"kd": 1}, **options)).steps == 1


def test_a_batch_of_nothing_that_counts_is_no_loss() -> None:
    done = train(pixels(), [(X_IMAGES, torch.full_like(Y_IMAGES, -100))], quick(weight_decay=0.0))
    assert done.history[-1]["train_loss"] == pytest.approx(0.0, abs=1e-6) or done.steps == 1


@pytest.mark.parametrize("shape", [(16,), (16, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_labels_of_any_integers_are_alike(dtype: torch.dtype, shape: tuple[int, ...], mixup: float) -> None:
    data = list(Batches(2))
    changed = [(x, y.to(dtype).reshape(shape)) for x, y in data]
    one, other = (train(network(), each, quick(dropout=0.0, mixup=mixup)) for each in (data, changed))
    assert one.history[-1]["train_loss"] == other.history[-1]["train_loss"]
    assert one.history[-1]["train_accuracy"] == other.history[-1]["train_accuracy"]


def test_probabilities_are_labels() -> None:
    data = list(Batches(2))
    soft = [(x, F.one_hot(y, 5).float()) for x, y in data]
    hard, other = (train(network(), each, quick(dropout=0.0)) for each in (data, soft))
    assert other.history[-1]["train_loss"] == pytest.approx(hard.history[-1]["train_loss"], rel=1e-5)
    assert other.history[-1]["train_accuracy"] == hard.history[-1]["train_accuracy"]


def test_targets_that_only_a_metric_reads_may_be_anything() -> None:
    boxes = [[{"box": [0, 1]}] * 16, [{"box": [2]}] * 16]
    data = [(x, box) for (x, _), box in zip(Batches(2), boxes, strict=True)]
    assert recover(network(), network(), data, quick(losses={"kd": 1})).steps == 2


@pytest.mark.parametrize(
    ("options", "item", "reason"),
    [
        ({"cutmix": 1.0}, (torch.randn(4, 6), torch.zeros(4).long()), "CutMix needs images"),
        ({"mixup": 1.0}, (torch.zeros(4, 6).long(), torch.zeros(4).long()), "real numbers"),
        ({"mixup": 1.0}, (torch.randn(4, 6), torch.zeros(4).long(), torch.zeros(4, K)), "teacher_logits are"),
        ({"mixup": 1.0}, (torch.randn(4, 6), torch.tensor([0, 1, -100, 2])), "batch 0 has the label -100"),
    ],
    ids=["cutmix", "integers", "answers", "ignored"],
)
def test_what_cannot_be_mixed_is_refused(options: dict[str, float], item: Any, reason: str) -> None:
    with pytest.raises(RecoverError, match=reason):
        train(nn.Linear(6, K), [item], quick(losses={"ce": 1.0}, **options))


def test_unlabelled_images_are_mixed_too() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean((2, 3))

    x = torch.eye(16)[:, :, None, None].expand(16, 16, 2, 2)
    model = nn.Sequential(nn.Conv2d(16, 16, 1), Spy())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(16)[:, :, None, None])  # type: ignore[operator]
        model[0].bias.zero_()  # type: ignore[operator]
    recover(model, model, [x], quick(mixup=1.0, losses={"kd": 1}))
    assert any(((one > 0.01) & (one < 0.99)).any() for one in seen)


class Flat(nn.Module):
    """Insists on row-major images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6 * 64, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.conv(x)).view(len(x), -1))


def test_networks_that_need_row_major_images_get_them() -> None:
    done = recover(Flat(), Flat(), Batches(), quick(), val=Batches(1))
    assert done.steps == 6


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, K)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.fc(self.norm(a + b))


def test_two_inputs_stay_two_where_statistics_are_measured_anew() -> None:
    a, b, y = torch.randn(16, 4), torch.randn(16, 4), torch.randint(0, K, (16,))
    data = [((a, b), y)] * 2
    assert recover(Pair(), Pair(), data, quick(), val=data).steps == 2


@pytest.mark.parametrize("name", ["mse", "cosine"])
def test_features_of_tokens_are_aligned_in_their_last_dimension(name: str) -> None:
    original = Tokens()
    pruned = prune(original, X_TOKENS, ratio=0.5)
    losses = {"kd": 1, name: {"layers": ["fc1", "fc2"]}}
    done = recover(pruned.model, original, [X_TOKENS], quick(losses=losses), plan=pruned.plan)
    assert done.history[-1][f"loss_{name}"] > 0


def test_attention_without_positions_is_refused() -> None:
    with pytest.raises(RecoverError, match="over positions"):
        recover(network(), network(), Batches(1), quick(losses={"at": 1}))
