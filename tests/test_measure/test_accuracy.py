from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from penjing.errors import MeasureError
from penjing.export.base import TensorSpec
from penjing.measure import Accuracy, accuracy, onnx_session, wilson


def batches(n: int = 20, classes: int = 3, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Inputs are logits, and the label of every fourth sample is not at their highest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, classes, generator=generator)
    y = x.argmax(dim=1)
    y[::4] = (y[::4] + 1) % classes
    return [(x[at : at + size], y[at : at + size]) for at in range(0, n, size)]


class Pass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x * 1


class Runner:
    inputs = (TensorSpec("x", np.dtype(np.float32), (None, 3)),)

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return [feeds["x"]]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "pass", value[:1], value[1:])
    path = tmp_path_factory.mktemp("onnx") / "pass.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_every_way_to_predict_gives_the_same(onnx_file: Path) -> None:
    module = Pass().train()
    results = [
        accuracy(predict, batches())
        for predict in (module, Runner(), onnx_session(onnx_file), lambda x: x, lambda x: x.numpy())
    ]
    assert all(result == results[0] for result in results)
    assert results[0].value == 0.75
    assert results[0].n == 20
    assert module.training


def test_dict_batches_carry_their_labels() -> None:
    named = [{"x": x, "labels": y} for x, y in batches()]
    assert accuracy(Runner(), named).value == 0.75


def test_confusion_and_classes_add_up() -> None:
    result = accuracy(lambda x: x, batches(60))
    assert result.confusion is not None
    assert result.confusion.sum() == 60
    totals = result.confusion.sum(axis=1)
    assert np.dot(totals, result.per_class) / 60 == pytest.approx(result.value)
    assert sum(n for _, _, n in result.confused(9)) == 15
    assert all(guess == (label - 1) % 3 for label, guess, _ in result.confused(9))


def test_a_class_without_samples_has_no_accuracy_and_json_is_plain() -> None:
    result = accuracy(lambda x: x, [(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0]))])
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["per_class"] == [1.0, None, None]


def test_max_samples_stops_exactly() -> None:
    assert accuracy(lambda x: x, batches(), max_samples=7).n == 7


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_holds_the_share_and_is_symmetric_under_swapping_success(n: int, share: float) -> None:
    correct = round(share * n)
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    swapped = wilson(n - correct, n)
    assert (1 - swapped[1], 1 - swapped[0]) == pytest.approx((low, high))
    wider = wilson(correct, n, z=3.0)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize(
    ("predict", "data", "match"),
    [
        (lambda x: x, [], "no samples"),
        (lambda x: x, [torch.zeros(2, 3)], "no labels"),
        (lambda x: x, [(torch.zeros(2, 3), torch.tensor([0, 3]))], "labels span 0…3 and there are 3 outputs"),
        (lambda x: x, [(torch.zeros(2, 3), torch.zeros(2, 3))], "labels are float32"),
        (lambda x: x * float("nan"), [(torch.zeros(2, 3), torch.tensor([0, 1]))], "not finite"),
        (lambda x: x[:1], [(torch.zeros(2, 3), torch.tensor([0, 1]))], "shape \\(1, 3\\) for 2 labels"),
        (
            Runner(),
            [((torch.zeros(2, 3), torch.zeros(2, 3)), torch.tensor([0, 1]))],
            "has 2 inputs and the file takes 1",
        ),
        (3, [(torch.zeros(2, 3), torch.tensor([0, 1]))], "cannot ask a int"),
    ],
)
def test_what_cannot_be_measured_is_an_error(predict: Any, data: list[Any], match: str) -> None:
    with pytest.raises(MeasureError, match=match):
        accuracy(predict, data)


def guesses(labels: list[int], answers: list[int], classes: int) -> Accuracy:
    logits = torch.nn.functional.one_hot(torch.tensor(answers), classes).float()
    return accuracy(lambda x: x.numpy(), [(logits, torch.tensor(labels))])


@pytest.mark.parametrize(("classes", "n"), [(2, 60), (10, 500), (100, 2000)])
def test_chance_is_told_from_knowledge(classes: int, n: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, n).tolist()
    for blind in (rng.integers(0, classes, n).tolist(), [1] * n, [(label + 1) % classes for label in labels]):
        assert guesses(labels, blind, classes).is_chance
    knows = [label if rng.random() < 0.5 else int(rng.integers(classes)) for label in labels]
    assert not guesses(labels, knows, classes).is_chance


def test_rare_classes_are_no_chance() -> None:
    """95 of 100 of one class: always to say it is blind, though 95% right; two of the others found is not."""
    labels = [0] * 950 + [1] * 50
    assert guesses(labels, [0] * 1000, 2).is_chance
    assert not guesses(labels, [0] * 950 + [1] * 25 + [0] * 25, 2).is_chance
    assert not guesses([0] * 100, [0] * 100, 2).is_chance  # nothing can be known of it
