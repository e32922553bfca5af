"""A batch ``(a, b)``: two inputs where the network requires two, else inputs and target, in every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.batches import take_apart
from penjing.data import DataBundle
from penjing.errors import DataError
from penjing.graph.inputs import required_inputs
from penjing.measure.accuracy import accuracy
from penjing.prune.recalibrate import recalibrate_
from penjing.prune.reconstruct import reconstruct
from penjing.prune.sparsity import sparsify
from penjing.quantize import quantize, quantized_student
from penjing.recipe.feed import Feed
from penjing.recipe.schema import DataConfig


class Two(nn.Module):
    """Scores of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, 3]``."""
        return self.head(torch.relu(self.norm(self.a(a) + self.b(b))))  # type: ignore[no-any-return]


class Maybe(Two):
    """The second input may be left out."""

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """``[N, 3]``."""
        return super().forward(a, a[:, :4] if b is None else b)


def pairs(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.rand(8, 6, generator=draw), torch.rand(8, 4, generator=draw)) for _ in range(count)]


def test_what_is_required_is_read_off_the_forward() -> None:
    assert required_inputs(Two()) == ("a", "b")
    assert required_inputs(Maybe()) == ("a",)
    assert required_inputs(nn.DataParallel(Two())) == ("a", "b")
    traced = torch.export.export(Two().eval(), pairs()[0]).module()
    assert required_inputs(traced) == ("a", "b")
    a, b = pairs()[0]
    assert take_apart((a, b), required_inputs(Two()))[1] is None
    assert take_apart((a, b), required_inputs(Maybe()))[1] is b
    assert take_apart(((a, b), b), required_inputs(Two()))[1] is b


def test_recovery_takes_two_inputs_without_targets() -> None:
    """It learns from the original; before, the second input was taken for the target."""
    torch.manual_seed(0)
    model, data = Two(), pairs()
    small = pj.prune(model, data[0], ratio=0.5)
    found = pj.recover(small.model, model, data, pj.RecoverConfig(epochs=1), val=data, plan=small.plan)
    same = [((a, b), None) for a, b in data]
    as_before = pj.recover(small.model, model, same, pj.RecoverConfig(epochs=1), val=same, plan=small.plan)
    for one, other in zip(found.model.parameters(), as_before.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_refit_and_a_sparsity_that_reads_samples_take_them() -> None:
    torch.manual_seed(0)
    model, data = Two().eval(), pairs()
    small = pj.prune(model, data[0], ratio=0.5)
    refit = reconstruct(small.model, model, small.plan, data)
    assert refit.num_samples == 96
    assert refit.error_after < refit.error_before
    sparsify(model, ratio=0.5, method="wanda", data=data)


def test_quantization_and_training_in_int8_take_them_without_examples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Two().eval(), pairs()
    assert quantize(model, data, out=tmp_path / "a.onnx", time_it=False).sqnr_db > 25
    student = quantized_student(model, data)
    trained = pj.recover(student, model, data, pj.RecoverConfig(epochs=1), val=data)
    assert quantize(trained.model, data, out=tmp_path / "b.onnx", time_it=False).sqnr_db > 25


def test_statistics_files_and_accuracies_go_by_the_same_rule(tmp_path: Path) -> None:
    model, data = Two().eval(), pairs()
    assert recalibrate_(model, data) == 1
    pj.export(model, tmp_path / "out", formats=("onnx",), data=data)
    labelled: list[Any] = [((a, b), torch.zeros(8, dtype=torch.int64)) for a, b in data]
    assert accuracy(model, labelled).n == 96


def test_one_required_input_leaves_the_second_the_target() -> None:
    """The second tensor could be either: it is the target, as for every network of one input."""
    model = Maybe()
    labelled = [(a, torch.zeros(8, dtype=torch.int64)) for a, _ in pairs()]
    assert accuracy(model, labelled).n == 96
    wrong = [(a, b, b) for a, b in pairs()]
    with pytest.raises(DataError, match=r"required positional"):
        pj.recover(Two(), Two(), wrong, pj.RecoverConfig(epochs=1))


class Images(nn.Module):
    """Two images, channels last, and the classes of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, 3]``."""
        x = torch.relu(self.a(a.permute(0, 3, 1, 2)) + self.b(b.permute(0, 3, 1, 2)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_the_data_of_a_recipe_goes_by_the_same_rule() -> None:
    """Examples, and batches that are laid out anew."""
    images = [(torch.rand(8, 3, 6, 6), torch.rand(8, 3, 6, 6)) for _ in range(2)]
    bundle = DataBundle(images, images, None, (), (), (), (3, 6, 6), "x")
    feed = Feed(DataConfig(spec="x"), bundle, layout="nhwc", seed=0, names=required_inputs(Images()))
    a, b = feed.examples()
    assert a.shape == b.shape == (2, 6, 6, 3)
    batch = feed.first(feed.train())
    assert batch is not None
    assert batch.target is None
    assert Images()(*batch.inputs).shape == (8, 3)
    alone = Feed(DataConfig(spec="x"), bundle, layout="nchw", seed=0)
    assert alone.examples().shape == (2, 3, 6, 6)
    batch = alone.first(alone.train())
    assert batch is not None
    assert batch.target is images[0][1]


def test_a_run_on_two_inputs_without_labels(tmp_path: Path) -> None:
    """It took the second input for targets that are no classes, and asked for a metric."""
    torch.manual_seed(0)
    short = pj.RecoverConfig(epochs=1)
    done = pj.compress(
        Two(), (pairs(), pairs(2)), max_drop=None, trials=1, recover=short, formats=("onnx",), out=tmp_path
    )
    assert done.metrics.metric == "agreement"
    assert done.model(*pairs()[0]).shape == (8, 3)


def test_a_run_on_two_inputs_and_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labelled = [((a, b), torch.randint(0, 3, (8,))) for a, b in pairs()]
    short = pj.RecoverConfig(epochs=1)
    done = pj.compress(
        Two(),
        (labelled, labelled[:3]),
        max_drop=None,
        trials=1,
        recover=short,
        formats=("onnx",),
        out=tmp_path,
    )
    assert done.model(*pairs()[0]).shape == (8, 3)
