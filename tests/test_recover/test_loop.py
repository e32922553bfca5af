from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recover_kit import CLASSES, Batches, equal, network
from torch import nn

from penjing.errors import DataError, RecoverError, RunError
from penjing.events import Event
from penjing.prune.recalibrate import recalibrate
from penjing.recover import RecoverConfig, StopReason, evaluate, recover, train


class Interrupted(Exception):
    pass


def interrupt_at(epoch: int) -> Any:
    """A listener that breaks off in the middle of ``epoch`` (from 1)."""

    def listen(event: Event) -> None:
        seen["metrics"] += event.kind == "metric"
        if event.kind == "progress" and seen["metrics"] == epoch - 1:
            raise Interrupted

    seen = {"metrics": 0}
    return listen


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "muon": {"optimizer": "muon", "lr": 0.01},
    "adamw, average, best": {"optimizer": "adamw", "lr": 0.01, "ema": 0.9, "keep": "best"},
    "accumulated, mixed": {"grad_accumulation": 4, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
    "steps end within an epoch": {"max_steps": 16, "schedule": "cosine", "warmup": 0.2},
    "patience": {"patience": 1, "lr": 1e-6},
    "remembered teacher": {"teacher_cache": 10_000},
    "epochs come again": {"distinct_epochs": 1, "mixup": 1.0, "losses": ["kd"]},
    "features": {"losses": ["ce", {"name": "sp"}, {"name": "mse", "options": {"layers": ["1"]}}]},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("broken_in", [1, 2, 3])
def test_resume_equals_uninterrupted(options: dict[str, Any], broken_in: int, tmp_path: Path) -> None:
    student, teacher, data, val = network(), network(seed=1), Batches(), Batches(2)
    config = RecoverConfig.parse({"epochs": 3, **options})
    whole = recover(student, teacher, data, config, val=val, seed=3)
    try:
        recover(
            student,
            teacher,
            data,
            config,
            val=val,
            seed=3,
            checkpoint=tmp_path,
            listen=interrupt_at(broken_in),
        )
    except Interrupted:
        torch.randn(3)  # another process would stand elsewhere in its random numbers
    resumed = recover(student, teacher, data, config, val=val, seed=3, checkpoint=tmp_path)
    assert equal(whole.model, resumed.model)
    assert whole.history == resumed.history
    assert (whole.best_epoch, whole.steps, whole.stopped) == (
        resumed.best_epoch,
        resumed.steps,
        resumed.stopped,
    )
    # a finished run is not trained again
    again = recover(student, teacher, data, config, val=val, seed=3, checkpoint=tmp_path)
    assert equal(whole.model, again.model)
    assert again.timing == resumed.timing


@pytest.mark.parametrize("grouped", [False, True], ids=["loader", "batch sampler"])
def test_shuffling_loader_with_its_own_generator_resumes(grouped: bool, tmp_path: Path) -> None:
    x_NCHW, y_N = torch.randn(40, 1, 8, 8), torch.randint(CLASSES, (40,))

    def loader() -> Any:
        dataset = torch.utils.data.TensorDataset(x_NCHW, y_N)
        generator = torch.Generator().manual_seed(7)
        if not grouped:
            return torch.utils.data.DataLoader(dataset, 8, shuffle=True, generator=generator)
        order = torch.utils.data.RandomSampler(dataset, generator=generator)
        batches = torch.utils.data.BatchSampler(order, 8, drop_last=False)
        return torch.utils.data.DataLoader(dataset, batch_sampler=batches)

    config = RecoverConfig(epochs=3)
    whole = train(network(), loader(), config)
    with pytest.raises(Interrupted):
        train(network(), loader(), config, checkpoint=tmp_path, listen=interrupt_at(3))
    assert equal(whole.model, train(network(), loader(), config, checkpoint=tmp_path).model)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_any_step(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    told: list[Event] = []
    with pytest.raises(RunError, match="is a file"):
        train(network(), Batches(1), checkpoint=file / "run", listen=told.append)
    assert not told


def test_learns_and_leaves_its_arguments_alone() -> None:
    model, before_rng = network().train(), torch.get_rng_state()
    before = copy.deepcopy(model)
    result = train(model, Batches(20), RecoverConfig(epochs=3, lr=0.05), val=Batches(4))
    assert result.history[-1]["val_accuracy"] > 0.95
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert equal(model, before)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before_rng)
    right, total, _ = evaluate(result.model, Batches(4))
    assert right / total == result.history[-1]["val_accuracy"]
    json.dumps(result.to_dict(), allow_nan=False)
    assert all(p.is_contiguous() for p in result.model.parameters())


def test_same_seed_same_model_and_other_seed_another() -> None:
    config = RecoverConfig(epochs=2)
    one, two, other = (train(network(), Batches(), config, seed=seed) for seed in (0, 0, 1))
    assert equal(one.model, two.model)
    assert one.history == two.history
    assert not equal(one.model, other.model)


def test_a_student_equal_to_its_teacher_stays_equal_under_kd() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, CLASSES))
    config = RecoverConfig.parse({"epochs": 2, "losses": ["kd"], "weight_decay": 0.0})
    result = recover(teacher, teacher, Batches(labels=False), config)
    for mine, its in zip(result.model.parameters(), teacher.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-6)
    assert result.history[-1]["train_loss"] == pytest.approx(0, abs=1e-6)


def test_recovery_approaches_the_teacher() -> None:
    teacher = train(network(), Batches(20), RecoverConfig(epochs=3, lr=0.05)).model
    student = network(seed=5)
    result = recover(student, teacher, Batches(20, labels=False), RecoverConfig(epochs=4, lr=0.05))
    x_NCHW = torch.cat([x for x, _ in Batches(4)])
    agree = (result.model(x_NCHW).argmax(1) == teacher(x_NCHW).argmax(1)).float().mean()
    assert agree > 0.9


@pytest.mark.parametrize("options", [{}, {"mixup": 1.0}, {"dropout": 0.5}], ids=["plain", "mixed", "dropout"])
def test_the_teacher_runs_in_the_distinct_epochs_only_and_nothing_else_changes(
    options: dict[str, Any],
) -> None:
    teacher, asked = network(seed=1).eval(), 0

    def counted(x_NCHW: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += 1
        out: torch.Tensor = teacher(x_NCHW)
        return out

    config = RecoverConfig.parse({"epochs": 5, "distinct_epochs": 2, "losses": ["kd"], **options})
    remembered = recover(network(), counted, Batches(), config)
    assert asked == 2 * len(Batches())
    anew = recover(
        network(), counted, Batches(), RecoverConfig.parse({**config.to_dict(), "teacher_cache": 0})
    )
    assert asked == (2 + 5) * len(Batches())
    assert equal(remembered.model, anew.model)
    assert remembered.history == anew.history
    other = recover(
        network(), counted, Batches(), RecoverConfig.parse({**config.to_dict(), "distinct_epochs": None})
    )
    assert not equal(remembered.model, other.model)


def test_data_that_does_not_repeat_under_distinct_epochs_is_told() -> None:
    def warned(data: Any) -> bool:
        told: list[Event] = []
        config = RecoverConfig(epochs=3, distinct_epochs=1)
        recover(network(), network(seed=1), data, config, listen=told.append)
        return any("did not repeat" in event.message for event in told if event.kind == "warning")

    class OwnChance(Batches):
        def set_epoch(self, epoch: int) -> None:
            self.epoch += 1

    dataset = torch.utils.data.TensorDataset(torch.randn(40, 1, 8, 8), torch.randint(CLASSES, (40,)))
    assert not warned(Batches())
    assert not warned(torch.utils.data.DataLoader(dataset, 8, shuffle=True))
    assert warned(OwnChance())


def test_several_teachers_callables_and_carried_logits_agree() -> None:
    teacher = network(seed=1).eval()
    config = RecoverConfig(epochs=1)
    carried = [(x, y, teacher(x).detach()) for x, y in Batches()]
    plain = [(x, y) for x, y, _ in carried]
    one = recover(network(), teacher, plain, config)
    assert equal(one.model, recover(network(), None, carried, config).model)
    assert equal(one.model, recover(network(), lambda x: teacher(x), plain, config).model)
    twice = recover(network(), [teacher, teacher], plain, config)
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(one.model.parameters(), twice.model.parameters(), strict=True)
    )


def test_steps_per_epoch_takes_one_step_and_accumulation_counts_optimizer_steps() -> None:
    assert train(network(), Batches(), RecoverConfig(epochs=3, steps_per_epoch=1)).steps == 3
    assert train(network(), Batches(7), RecoverConfig(epochs=2, grad_accumulation=3)).steps == 6


def test_accumulation_equals_the_large_batch_without_batch_norm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    batches = list(Batches(4))
    large = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    options: dict[str, Any] = {"epochs": 3, "grad_clip": None}
    a = train(model, batches, RecoverConfig(grad_accumulation=4, **options))
    b = train(model, large, RecoverConfig(**options))
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


@pytest.mark.parametrize("ignored", [0, 9])
def test_accumulation_weighs_a_batch_by_the_labels_that_count(ignored: int) -> None:
    x_NCHW, y_N = next(iter(Batches(1)))
    y_N = torch.cat([torch.full((ignored,), -100), y_N[ignored:]])
    short = [(x_NCHW[:12], y_N[:12]), (x_NCHW[12:], y_N[12:])]
    options: dict[str, Any] = {"epochs": 1, "grad_clip": None}
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    a = train(model, short, RecoverConfig(grad_accumulation=2, **options))
    b = train(model, [(x_NCHW, y_N)], RecoverConfig(**options))
    assert a.history[0]["train_loss"] == pytest.approx(b.history[0]["train_loss"])
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_the_samplers_of_a_loader_hear_the_epoch() -> None:
    heard: list[tuple[str, int]] = []

    class Order(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            heard.append(("order", epoch))

    class Groups(torch.utils.data.BatchSampler):
        def set_epoch(self, epoch: int) -> None:
            heard.append(("groups", epoch))

    x_NCHW, y_N = next(iter(Batches(1)))
    dataset = torch.utils.data.TensorDataset(x_NCHW, y_N)
    plain = torch.utils.data.DataLoader(dataset, 8, sampler=Order(dataset))
    train(network(), plain, RecoverConfig(epochs=2))
    assert list(dict.fromkeys(heard)) == [("order", 0), ("order", 1)]
    heard.clear()
    grouped = torch.utils.data.DataLoader(dataset, batch_sampler=Groups(Order(dataset), 8, False))
    train(network(), grouped, RecoverConfig(epochs=1))
    assert list(dict.fromkeys(heard)) == [("groups", 0), ("order", 0)]


def test_a_compiled_network_is_looked_into_after_one_that_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    def history(losses: Any, **options: Any) -> Any:
        config = RecoverConfig.parse({"epochs": 1, "losses": losses, **options})
        return recover(network(), network(seed=1), Batches(2), config).history

    history({"kd": 1}, compile=True)
    inside = {"mse": {"layers": ["1"]}}
    found, wanted = history(inside, compile=True)[0], history(inside)[0]
    assert found["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-4)


def test_options_that_do_nothing_without_validation_data_are_told() -> None:
    def warned(**options: Any) -> bool:
        told: list[Event] = []
        train(network(), Batches(1), RecoverConfig(epochs=1, **options), listen=told.append)
        return any("without validation data" in event.message for event in told if event.kind == "warning")

    assert [warned(keep="best"), warned(patience=1), warned()] == [True, True, False]


def test_stops() -> None:
    assert train(network(), Batches(), RecoverConfig(epochs=2)).stopped is StopReason.EPOCHS
    assert train(network(), Batches(), RecoverConfig(max_steps=4)).steps == 4
    told: list[Event] = []
    timed = train(network(), Batches(), RecoverConfig(epochs=10_000, max_seconds=0.3), listen=told.append)
    assert told[0].message.endswith(f"0 s or {10_000 * len(Batches())} steps")
    assert told[-1].total == timed.steps  # what the clock leaves room for, not what the epochs would
    assert timed.stopped is StopReason.MAX_SECONDS
    assert timed.history[-1]["lr"] < 0.02 * 0.2  # the schedule came down by the clock
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    idle = train(flat, Batches(), RecoverConfig(epochs=9, lr=1e-9, patience=2), val=Batches(2))
    assert idle.stopped is StopReason.PATIENCE
    assert len(idle.history) == 3
    untouched = train(network(), Batches(), RecoverConfig(epochs=0))
    assert equal(untouched.model, network())


def test_keep_best_returns_the_best_epoch() -> None:
    config = RecoverConfig(epochs=4, lr=3.0, grad_clip=None, keep="best", schedule="constant")
    result = train(network(), Batches(), config, val=Batches(4))
    best = max(entry["val_accuracy"] for entry in result.history)
    right, total, _ = evaluate(result.model, Batches(4))
    assert result.best_epoch is not None
    assert right / total == best == result.history[result.best_epoch - 1]["val_accuracy"]


def broken(where: str) -> list[Any]:
    batches: list[Any] = list(Batches(3))
    x_NCHW, y_N = batches[1]
    if where == "nan":
        x_NCHW = x_NCHW.clone()
        x_NCHW[5, 0, 2, 2] = float("nan")
    elif where == "label":
        y_N = y_N.clone()
        y_N[2] = CLASSES
    elif where == "length":
        y_N = y_N[:-1]
    batches[1] = (x_NCHW, y_N) if where != "kind" else "batch"
    return batches


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nan", "batch 1: sample 5 .* NaN"),
        ("label", "batch 1: label 5 is outside the model's classes 0 … 4"),
        ("length", "16 inputs come with 15 targets"),
        ("kind", "a batch is a str"),
    ],
)
@pytest.mark.parametrize("part", ["data", "val"])
def test_bad_batches_are_named(where: str, said: str, part: str) -> None:
    data, val = (broken(where), Batches(2)) if part == "data" else (Batches(2), broken(where))
    with pytest.raises(DataError, match=said):
        train(network(), data, RecoverConfig(epochs=1), val=val)


def test_bad_data_and_teachers_are_refused() -> None:
    with pytest.raises(DataError, match="no batches"):
        train(network(), [])
    with pytest.raises(DataError, match="used up"):
        train(network(), iter(Batches()))
    with pytest.raises(DataError, match="validation data is an iterator"):
        train(network(), Batches(), val=iter(Batches()))
    with pytest.raises(
        RecoverError, match=r"teacher answers with shape \[16, 7\], the student with \[16, 5\]"
    ):
        recover(network(), nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), Batches())
    with pytest.raises(RecoverError, match=r"teacher does not take inputs of shape \[16, 1, 8, 8\]"):
        recover(network(), nn.Sequential(nn.Flatten(), nn.Linear(63, 5)), Batches())
    with pytest.raises(DataError, match=r"model does not take inputs of shape \[16, 1, 8, 8\]"):
        train(nn.Conv2d(3, 5, 3), Batches())
    with pytest.raises(DataError, match=r"model does not take inputs of shape \[4, 2, 8, 8\]"):
        train(network(), Batches(), val=[(torch.zeros(4, 2, 8, 8), torch.zeros(4, dtype=torch.int64))])
    with pytest.raises(RecoverError, match="needs a teacher"):
        train(network(), Batches(), RecoverConfig.parse({"losses": ["kd"]}))
    with pytest.raises(RecoverError, match="needs labels"):
        train(network(), Batches(labels=False))
    with pytest.raises(RecoverError, match="no parameter"):
        train(network().requires_grad_(False), Batches())


def test_a_loss_that_nothing_trained_reaches_is_refused() -> None:
    frozen = network()
    frozen.get_submodule("0").requires_grad_(False)
    config = RecoverConfig.parse({"epochs": 1, "losses": {"mse": {"layers": ["0"]}}})
    with pytest.raises(RecoverError, match="depends on no parameter that is trained"):
        recover(frozen, network(seed=1), Batches(1), config)


def test_a_batch_of_one_is_told_and_left_out_of_the_statistics() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, CLASSES))
    x_NCHW, y_N = next(iter(Batches(1)))
    odd = [(x_NCHW, y_N), (x_NCHW[:1], y_N[:1])]
    with pytest.raises(DataError, match="drop_last=True"):
        train(model, odd, RecoverConfig(epochs=1))
    assert equal(recalibrate(model, odd), recalibrate(model, odd[:1]))


class Once:
    """Gives its batches in one pass only."""

    def __init__(self) -> None:
        self.batches = iter(Batches(3))

    def __iter__(self) -> Iterator[Any]:
        return self.batches


class OnceOf3(Once):
    def __len__(self) -> int:
        return 3


def test_data_that_gives_nothing_the_second_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no batch in a second pass"):
        train(network(), Once(), RecoverConfig(epochs=1))
    with pytest.raises(DataError, match="no batch in epoch 2"):
        train(network(), OnceOf3(), RecoverConfig(epochs=2), checkpoint=tmp_path)


class Explodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return x / 0 if self.calls > 3 else x


def test_a_loss_that_is_not_finite_names_step_and_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Explodes(), nn.Linear(8, CLASSES))
    with pytest.raises(
        RecoverError, match="at 2: the loss is nan at step 4; the first layer whose"
    ) as failed:
        train(model, Batches())
    assert "a new folder" in failed.value.remedy  # a checkpoint refuses other options


def test_a_gradient_that_is_not_finite_names_the_parameter() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (x * 0).sqrt()  # finite, but the gradient of the root at 0 is not

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), Root())
    with pytest.raises(RecoverError, match=r"1\.weight: the gradient norm is nan at step 1"):
        train(model, Batches(), RecoverConfig(grad_clip=None))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    config = RecoverConfig(epochs=1)
    train(network(), Batches(), config, checkpoint=tmp_path)
    with pytest.raises(RecoverError, match=r"made with lr = 0\.02, this run has 0\.5"):
        train(network(), Batches(), RecoverConfig(epochs=1, lr=0.5), checkpoint=tmp_path)
    with pytest.raises(RecoverError, match="belongs to another model"):
        train(network(width=4), Batches(), config, checkpoint=tmp_path)
    for file in tmp_path.glob("model-*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RecoverError, match="cannot be read"):
        train(network(), Batches(), config, checkpoint=tmp_path)
