"""A network whose forward takes one dict, or lists among its arguments, does what the same network does that
takes the tensors one by one; the keys of a batch may come in any order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penjing as pj
from penjing.batches import call_model
from penjing.errors import DataError
from penjing.measure import accuracy
from penjing.naming import by_name
from penjing.prune import prune
from penjing.prune.masked import masked_equivalence
from penjing.quantize import QuantizeConfig, quantize


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.past, self.known, self.static = nn.Linear(8, 32), nn.Linear(6, 32), nn.Embedding(10, 64)
        self.head = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))

    def forward(self, past: Tensor, known: Tensor, static: Tensor) -> Tensor:
        steps = torch.cat([F.relu(self.past(past)).mean(1), F.relu(self.known(known)).mean(1)], -1)
        out: Tensor = self.head(steps + self.static(static))
        return out


class OneDict(Flat):
    def forward(self, x: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(x["past"], x["known"], x["static"])


class Lists(Flat):
    def forward(self, steps: list[Tensor], more: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(steps[0], steps[1], more["static"])


Shape = Callable[[Tensor, Tensor, Tensor], Any]
FORMS: dict[str, tuple[type[Flat], Shape]] = {
    "bare dict": (OneDict, lambda past, known, static: {"static": static, "known": known, "past": past}),
    "dict": (OneDict, lambda past, known, static: ({"past": past, "static": static, "known": known},)),
    "keyword": (OneDict, lambda past, known, static: {"x": {"known": known, "past": past, "static": static}}),
    "lists": (Lists, lambda past, known, static: ([past, known], {"static": static})),
}
SIZES = (10, 16, 10)


def drawn(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, 5, 8, generator=g),
        torch.randn(size, 7, 6, generator=g),
        torch.randint(0, 10, (size,), generator=g),
    )


PARTS = [drawn(size, at) for at, size in enumerate(SIZES)]
Y = [torch.arange(size) % 3 for size in SIZES]


def flat() -> tuple[nn.Module, Any, list[Any]]:
    return Flat().eval(), PARTS[0], [(parts, y) for parts, y in zip(PARTS, Y, strict=True)]


def nested(form: str) -> tuple[nn.Module, Any, list[Any]]:
    model, shape = FORMS[form]
    data = [(shape(*parts), y) for parts, y in zip(PARTS, Y, strict=True)]
    return model().eval(), shape(*PARTS[0]), data


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = (dict(model.named_parameters()) for model in (one, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_pruned_and_refitted(form: str) -> None:
    made = []
    for model, example, data in (flat(), nested(form)):
        small = pj.prune(model, example, 0.5, "obs", data=data, reconstruct={"block_steps": 4})
        assert small.in_place
        made.append(small.model)
    assert_alike(*made)


@pytest.mark.parametrize("form", FORMS)
def test_recovered(form: str) -> None:
    made = []
    for model, _, data in (flat(), nested(form)):
        student = copy.deepcopy(model)
        with torch.no_grad():
            for value in student.parameters():
                value.mul_(0.7)
        made.append(pj.recover(student, model, data, {"epochs": 1, "lr": 0.01}, val=data).model)
    assert_alike(*made)
    assert accuracy(made[1], nested(form)[2]) == accuracy(made[0], flat()[2])


@pytest.mark.parametrize("form", FORMS)
def test_quantized(form: str, tmp_path: Path) -> None:
    answers = []
    for at, (model, example, data) in enumerate((flat(), nested(form))):
        path = tmp_path / f"{at}.onnx"
        config = QuantizeConfig.parse({"samples": 30, "check_samples": 4})
        quantize(model, data, config, out=path, example_inputs=example, time_it=False)
        session = onnxruntime.InferenceSession(str(path))
        feeds = by_name(data[1][0], [entry.name for entry in session.get_inputs()])
        assert feeds is not None
        answers.append(session.run(None, {name: value.numpy() for name, value in feeds.items()})[0])
        assert 0 <= accuracy(session, data).value <= 1
    np.testing.assert_allclose(answers[1], answers[0], atol=0.05 * np.abs(answers[0]).max())


@pytest.mark.parametrize("form", FORMS)
def test_exported_and_stored(form: str, tmp_path: Path) -> None:
    model, example, data = nested(form)
    made = pj.export(model, tmp_path / "out", formats=("onnx", "program"), example_inputs=example, data=data)
    for file in made.files:
        assert file.verification.relative < 1e-5
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]
    pj.save_artifact(tmp_path / "art", model, example_inputs=example)
    again = pj.load(tmp_path / "art")
    given = data[1][0]
    with torch.no_grad():
        torch.testing.assert_close(call_model(again, given), call_model(model, given))


def test_names_of_nested_inputs() -> None:
    a, b, c = PARTS[0]
    assert by_name(({"b": b, "a": a},), ["a", "b"]) == {"a": a, "b": b}
    assert by_name([c, {"b": b, "x_b": a}], ["ids", "m_x_b", "m_b"]) == {"ids": c, "m_x_b": a, "m_b": b}
    assert by_name(([a, b], c), ["x_0", "x_1", "y"]) == {"x_0": a, "x_1": b, "y": c}
    assert by_name({"x": [a, b], "label": c}, ["x_1", "x_0"]) == {"x_1": b, "x_0": a}
    assert by_name({"b": b, "a": a}, ["x_a", "x_b"]) == {"x_a": a, "x_b": b}
    assert by_name({"b": b, "a": a}, ["x_a", "x_c"]) is None
    assert by_name((a, b), ["x"]) is None
    assert by_name({"a": a}, ["b"]) is None


class OwnNames(nn.Module):
    """Arguments and outputs that are called like ops and weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, cat: Tensor, weight: Tensor, linear: Tensor) -> dict[str, Tensor]:
        y = torch.relu(torch.cat([self.line(cat) * self.weight, weight * self.bias], 1)) * linear
        return {"mul": y.tanh(), "relu": y.sum(-1, keepdim=True) * 3, "cat": y - 1, "bias": y * 2}


def test_names_of_ops_and_weights_are_free_for_inputs_and_outputs(tmp_path: Path) -> None:
    example = {"cat": torch.randn(3, 4), "weight": torch.randn(3, 4), "linear": torch.randn(3, 8)}
    made = pj.export(OwnNames().eval(), tmp_path / "out", formats=("onnx",), example_inputs=example)
    session = onnxruntime.InferenceSession(str(made.files[0].path))
    assert [entry.name for entry in session.get_inputs()] == list(example)
    assert [entry.name for entry in session.get_outputs()] == ["mul", "relu", "output_cat", "bias"]


def total(output: Tensor, _: Any) -> Tensor:
    return output.square().sum()


class Unlike(nn.Module):
    """Two inputs of one shape, and of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.o = (
            nn.Linear(4, 12),
            nn.Linear(4, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 3),
        )

    def forward(self, labels: Tensor, x: dict[str, Tensor]) -> Tensor:
        return self.o(F.relu(self.c(F.relu(self.a(labels)) + F.relu(self.b(x["p"]) * x["q"]))))  # type: ignore[no-any-return]


def unlike(number: int = 40) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    p, q, y = torch.randn(3, number, 4, generator=g)
    return {"labels": 3 * y + 2, "x": {"p": 0.1 * p, "q": 5 * q[:, :1] + 1}}


@pytest.mark.parametrize("criterion", ["obs", "activation", "taylor"])
def test_a_dict_may_name_its_entries_in_another_order(criterion: str) -> None:
    given = unlike()
    turned = {"x": dict(reversed(given["x"].items())), "labels": given["labels"]}
    model, example = Unlike(), unlike(2)
    options: dict[str, Any] = {"ratio": 0.4, "criterion": criterion, "reconstruct": True, "loss": total}
    one, other = (prune(model, example, data=[(batch, None)], **options) for batch in (given, turned))
    assert one.plan.groups == other.plan.groups
    assert one.reconstruction is not None
    assert other.reconstruction is not None
    assert one.reconstruction.error_after == pytest.approx(other.reconstruction.error_after, rel=1e-6)


def test_what_the_network_takes_is_never_the_target_and_too_few_inputs_are_told() -> None:
    model, example = Unlike(), unlike(2)
    one, other = (
        prune(model, example, ratio=0.4, criterion="obs", data=[batch])
        for batch in (unlike(), (unlike(), None))
    )
    assert one.plan.groups == other.plan.groups
    assert masked_equivalence(model, one, dict(reversed(unlike().items()))) < 1e-5
    with pytest.raises(DataError, match="gives 2 inputs, the network was traced with 3"):
        prune(model, example, ratio=0.4, criterion="obs", data=[{"x": unlike()["x"]}])
