"""Networks that do not classify learn all of the original's outputs, judged by them or by a metric."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from penjing.batches import classifies, outputs_of
from penjing.errors import DataError, RecoverError
from penjing.prune import prune
from penjing.recover import RecoverConfig, recover, train
from penjing.recover.losses import Answers, make_loss


class Boxes(nn.Module):
    """Two outputs of different size and scale."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.score, self.box = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"score": self.score(x), "box": 100 * self.box(x)}


def boxes(seed: int = 0) -> Boxes:
    torch.manual_seed(seed)
    return Boxes().eval()


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 6, 6, generator=draw), torch.rand(8, 1, generator=draw)) for _ in range(count)]


def config(**changes: object) -> RecoverConfig:
    return RecoverConfig.parse({"epochs": 4, "lr": 0.05, "recalibrate": 0, **changes})


CONFIG = config()


def test_every_output_comes_back() -> None:
    original = boxes()
    pruned = prune(original, batches()[0][0], ratio=0.5)
    done = recover(pruned.model, original, batches(), CONFIG, val=batches(2), plan=pruned.plan)
    start, end = done.start["val_fidelity"], done.history[-1]["val_fidelity"]
    assert start < end <= 1
    assert end > 0.8
    assert "train_accuracy" not in done.history[0]
    assert done.history[-1]["train_loss"] < done.history[0]["train_loss"]
    assert "fidelity" in str(done)
    x = batches()[0][0]
    for name, wanted in original(x).items():  # both, not only the first
        assert (done.model(x)[name] - wanted).square().mean() < 0.7 * (
            pruned.model(x)[name] - wanted
        ).square().mean()


class Detector(nn.Module):
    """Scores of three classes and a box; where asked for, other scores while it trains."""

    def __init__(self, aux: bool) -> None:
        super().__init__()
        self.body, self.score, self.box, self.aux = nn.Linear(36, 8), nn.Linear(8, 3), nn.Linear(8, 4), aux

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.body(x.flatten(1)).relu()
        more = (self.box(x),) if self.training or not self.aux else ()
        return self.score(x), *more


@pytest.mark.parametrize("aux", [False, True])
def test_without_labels_all_that_the_original_answers_is_learned(aux: bool) -> None:
    torch.manual_seed(0)
    original, student = Detector(aux), Detector(aux)
    done = recover(student, original, [x for x, _ in batches()], config(epochs=1))
    moved = not torch.equal(done.model.get_parameter("box.weight"), student.box.weight)
    assert moved is not aux


def test_the_same_network_is_wholly_faithful() -> None:
    original = boxes()
    done = recover(original, original, batches(), RecoverConfig(epochs=1, lr=1e-9), val=batches(2))
    assert done.start["val_fidelity"] == pytest.approx(1)


def test_remembered_answers_are_the_same() -> None:
    pruned = prune(boxes(), batches()[0][0], ratio=0.5).model
    plain = recover(pruned, boxes(), batches(), CONFIG, val=batches(2))
    kept = recover(pruned, boxes(), batches(), config(teacher_cache=1000), val=batches(2))
    assert plain.history == kept.history


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    pruned = prune(boxes(), batches()[0][0], ratio=0.5).model
    cached = config(teacher_cache=1000)

    def stop(event: object) -> None:
        if getattr(event, "kind", "") == "metric" and getattr(event, "metrics", {}).get("epoch") == 2:
            raise KeyboardInterrupt

    whole = recover(pruned, boxes(), batches(), cached, val=batches(2))
    with pytest.raises(KeyboardInterrupt):
        recover(pruned, boxes(), batches(), cached, val=batches(2), checkpoint=tmp_path, listen=stop)
    again = recover(pruned, boxes(), batches(), cached, val=batches(2), checkpoint=tmp_path)
    assert again.history == whole.history


def test_a_metric_judges() -> None:
    pruned = prune(boxes(), batches()[0][0], ratio=0.5).model
    seen: list[tuple[torch.Size, torch.Size]] = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        seen.append((outputs.shape, targets.shape))
        return float(len(seen))  # better each time

    done = recover(pruned, boxes(), batches(), CONFIG, val=batches(2), metric=metric)
    assert done.start["val_metric"] == 1
    assert [record["val_metric"] for record in done.history] == [2, 3, 4, 5]
    assert done.start["val_n"] == 16
    assert set(seen) == {(torch.Size([16, 1, 6, 6]), torch.Size([16, 1]))}
    worse = recover(pruned, boxes(), batches(), CONFIG, val=batches(2), metric=lambda z, y: -metric(z, y))
    assert worse.kept == "start"


def test_validation_data_without_targets_or_with_answers_is_judged_by_the_original() -> None:
    original, data = boxes(), batches(2)
    bare = [x for x, _ in data]
    answered = [(x, y, original(x)["score"].detach()) for x, y in data]
    found = [recover(boxes(3), original, data, CONFIG, val=val).history for val in (data, bare, answered)]
    assert found[0] == found[1] == found[2]
    assert "val_fidelity" in found[0][-1]
    scores = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))  # may be classes, but none are named
    assert "val_fidelity" in recover(scores, scores, data, CONFIG, val=bare).history[-1]


def test_what_is_not_said_is_refused() -> None:
    with pytest.raises(RecoverError, match="no original to learn from"):
        train(boxes(), batches(), CONFIG)
    with pytest.raises(RecoverError, match="classes of the outputs"):
        recover(boxes(), boxes(), batches(), config(losses={"ce": 1.0}))
    with pytest.raises(RecoverError, match="'outputs'"):
        recover(boxes(), boxes(), batches(), config(losses={"kd": 1.0}))
    answers = [(x, y, boxes()(x)["score"]) for x, y in batches()]  # the original came with the data
    with pytest.raises(RecoverError, match="metric="):
        recover(boxes(), None, answers, CONFIG, val=batches())
    scores = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    named = [(x, torch.zeros(8, dtype=torch.int64)) for x, _ in batches(1)]
    with pytest.raises(RecoverError, match="int64 labels"):  # train takes no metric
        train(scores, named, CONFIG, val=batches(1))
    with pytest.raises(DataError, match="validation data has no labels"):
        train(scores, named, CONFIG, val=[x for x, _ in named])
    other = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.raises(RecoverError, match="the teacher answers with shape"):
        recover(other, boxes(), batches(), CONFIG)


class Decoding(nn.Module):
    """Gives raw maps in training and decodes them in use, as detectors do."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Dropout(0.1), nn.ReLU()
        )
        self.head, self.noise = nn.Conv2d(12, 4, 1), noise

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.head(self.body(x))
        return y + self.noise * torch.rand(()) if self.training else (y.flatten(2).sigmoid(), y)


@pytest.mark.parametrize("named", [False, True])
def test_outputs_of_training_mode_are_learned_from_the_original_in_that_form(named: bool) -> None:
    torch.manual_seed(0)
    original, data = Decoding().eval(), [x for x, _ in batches()]
    state = {name: value.clone() for name, value in original.state_dict().items()}
    pruned = prune(original, data[0], ratio=0.5)
    said: list[str] = []
    done = recover(
        pruned.model,
        original,
        data,
        config(losses={"outputs": 1.0} if named else {}),
        val=[(x, None) for x in data],
        plan=pruned.plan,
        listen=lambda event: said.append(event.message),
    )
    assert done.start["val_fidelity"] < done.history[-1]["val_fidelity"]
    assert sum("as it does in training (outputs [2, 4, 6, 6])" in one for one in said) == 1
    assert not original.training
    assert all(torch.equal(value, state[name]) for name, value in original.state_dict().items())
    assert len(done.model(data[0])) == 2


def test_outputs_that_go_by_the_mode_and_by_chance_are_named() -> None:
    wanted = r"\[8, 4, 6, 6\] in training mode and \[8, 4, 36\], \[8, 4, 6, 6\] in eval mode"
    with pytest.raises(RecoverError, match=wanted):
        recover(Decoding(1.0), Decoding(1.0), [x for x, _ in batches(1)], CONFIG)


def test_what_counts_as_classes() -> None:
    scores, one = torch.randn(6, 3), torch.randn(6, 1)
    assert classifies(torch.tensor([0, 1, 2, 0, 1, 2]), scores)
    assert classifies(torch.zeros(2, 3, dtype=torch.int64), scores)  # dense: two samples of three positions
    assert classifies(None, scores)
    assert not classifies(None, one)
    assert not classifies(torch.zeros(6, dtype=torch.int64), one)
    assert not classifies(torch.rand(6), scores)
    assert not classifies(torch.zeros(4, dtype=torch.int64), scores)


def test_the_loss_is_in_units_of_the_outputs_variance() -> None:
    teacher = (torch.randn(64, 3), 1000 + 50 * torch.randn(64, 2, 4))
    loss = make_loss("outputs")
    logits = teacher[0]
    mean = tuple(t.mean().expand_as(t) for t in teacher)
    for student, expected in ((teacher, 0.0), (mean, 1.0)):
        answers = Answers(logits, teacher_NK=logits, student_outputs=student, teacher_outputs=teacher)
        assert float(loss(answers)) == pytest.approx(expected, abs=1e-3)


def test_outputs_are_those_with_an_entry_for_each_sample() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 2, 2)
    answer = {"loss": torch.tensor(1.0), "other": b, "logits": a, "table": torch.randn(5, 3)}
    assert [id(t) for t in outputs_of(answer, 4)] == [id(a), id(b)]


def test_outputs_of_other_shapes_are_named_where_they_are_judged() -> None:
    wide, narrow = (nn.Sequential(nn.Flatten(), nn.Linear(36, width)) for width in (3, 2))
    with pytest.raises(RecoverError, match=r"shape \[8, 3\], the student with \[8, 2\]"):
        recover(narrow, wide, batches(2), CONFIG, val=batches(2))
