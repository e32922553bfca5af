"""A batch means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.batches import ask, first_samples, outputs_of, take_apart, unpack
from penjing.data import ArraySplit
from penjing.errors import DataError

X, Y, Z = torch.zeros(4, 3), torch.arange(4), torch.ones(4, 5)


@pytest.mark.parametrize(
    ("item", "names", "inputs", "target", "logits"),
    [
        (X, (), X, None, None),
        ((X,), (), X, None, None),
        ((X, Y), (), X, Y, None),
        ([X, Y, Z], (), X, Y, Z),
        ((X.numpy(), Y.numpy()), ("input",), X.numpy(), Y.numpy(), None),
        ((X, Z), ("a", "b"), (X, Z), None, None),
        ((X, Y), ("a", "b"), (X, Y), None, None),
        (((X, Z), Y), ("a", "b"), (X, Z), Y, None),
        (((X, Z), Z), ("a", "b"), (X, Z), Z, None),
        (({"a": X, "b": Z}, Z), ("a", "b"), {"a": X, "b": Z}, Z, None),
        ((X, (Z, Z)), ("x", "h", "c"), (X, (Z, Z)), None, None),
        (((X, Z), None), ("a", "b"), (X, Z), None, None),
        (((X, Z),), ("a", "b"), (X, Z), None, None),
        (({"a": X, "b": Z}, 0), ("a", "b"), {"a": X, "b": Z}, 0, None),
        (({"a": X, "b": Z}, None), ("a", "b"), {"a": X, "b": Z}, None, None),
        ((X, Z, Y), ("a", "b", "c"), (X, Z, Y), None, None),
        ({"a": X, "b": Z}, (), {"a": X, "b": Z}, None, None),
        ({"a": X, "labels": Y}, (), {"a": X}, Y, None),
        ({"inputs": X, "targets": Y}, (), X, Y, None),
        ({"inputs": (X, Z), "label": Y, "teacher_logits": Z}, (), (X, Z), Y, Z),
        ({"a": X, "labels": Y}, ("a", "labels"), {"a": X, "labels": Y}, None, None),
        ((X, X, X, X), (), (X, X, X, X), None, None),
    ],
)
def test_items_of_data_are_taken_apart(
    item: Any, names: tuple[str, ...], inputs: Any, target: Any, logits: Any
) -> None:
    found = take_apart(item, names)
    for part, expected in zip(found, (inputs, target, logits), strict=True):
        assert _same(part, expected)


@pytest.mark.parametrize("item", [3, "x", (), {}, None, (X, Y, Z, Z, 1), ("a", Y), np.zeros(3)])
def test_what_holds_no_tensors_is_no_batch(item: Any) -> None:
    with pytest.raises(DataError):
        unpack(item)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) or one is None:
        return one is other
    return bool(np.array_equal(one, other))


def test_first_samples_that_come_class_by_class_are_told() -> None:
    x = torch.randn(256, 3)

    def told(y: Tensor, size: int, samples: int = 64) -> list[str]:
        heard: list[str] = []
        taken = first_samples(
            zip(torch.split(x, size), torch.split(y, size), strict=True), samples, tell=heard.append
        )
        assert torch.equal(torch.cat([inputs for inputs in taken if isinstance(inputs, Tensor)]), x[:samples])
        return heard

    by_class = torch.arange(256) // 40
    for size in (16, 24, 256):
        assert "labels 0 to 1" in told(by_class, size)[0]
        assert not told(by_class.roll(1), size)
        assert not told(by_class, size, samples=256)  # all there are
        assert not told(by_class.float(), size)


def test_the_first_output_is_found_however_deep_it_lies() -> None:
    found = outputs_of([{"heat": (X,), "size": Z, "offset": Y}], 4)
    assert [id(each) for each in found] == [id(X), id(Z)]  # integers are no outputs to learn
    nothing: list[Any] = [[], [{}], {"heat": None}]
    for empty in nothing:
        with pytest.raises(DataError, match="not a tensor with an entry for each sample"):
            outputs_of(empty, 4)


def test_a_pair_for_a_network_of_two_inputs_says_how_to_give_both() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    batch = unpack((X, X))
    with pytest.raises(DataError, match=r"missing 1 required .*make it \(\(a, b\), target\) or a dict"):
        ask(Two(), batch.inputs, "model")
    assert torch.equal(ask(Two(), unpack(((X, X), Y)).inputs, "model"), X)


class Samples(torch.utils.data.Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3), 0


SPLIT = ArraySplit(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2, ("a", "b"))


@pytest.mark.parametrize(
    "data", [SPLIT, Samples(), "images.npz", {"train": []}], ids=lambda one: type(one).__name__
)
def test_every_stage_tells_sets_and_paths_from_batches(data: Any, tmp_path: Path) -> None:
    """A Split was refused for "a ndarray" in a batch, and what takes it was not named."""
    net, x = nn.Linear(3, 2), torch.zeros(2, 3)
    stages = (
        lambda: pj.train(net, data),
        lambda: pj.recover(net, net, [x], pj.RecoverConfig(epochs=1), val=data),
        lambda: pj.prune(net, x, criterion="taylor", data=data),
        lambda: pj.quantize(net, data, out=tmp_path / "q.onnx", example_inputs=x),
    )
    for stage in stages:
        with pytest.raises(DataError, match=rf"{type(data).__name__}, not batches\. .*pj\.Loader\(split"):
            stage()
