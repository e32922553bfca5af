"""Another loader is seen to be another, and the same one to be the same, whatever it draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from penjing.recipe.seen import loader_digest, values_digest

X = torch.arange(40.0).reshape(20, 2)


class Noisy(Dataset[Tensor]):
    """Samples under augmentation: ``draw`` gives noise."""

    def __init__(self, draw: Callable[[], float], shift: float = 0.0, count: int = 20) -> None:
        self.draw, self.shift, self.count = draw, shift, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return X[index] + self.draw() + self.shift


class Broken(Noisy):
    def __getitem__(self, index: int) -> Tensor:
        raise KeyError(index)


def loader(data: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=4, shuffle=True)


def test_lists_are_seen_whole() -> None:
    batches = [(X[i : i + 5], {"y": i}) for i in range(0, 20, 5)]
    assert loader_digest(batches) == loader_digest([(x.clone(), dict(y)) for x, y in batches])
    assert loader_digest(batches) != loader_digest([*batches[:-1], (X[15:], {"y": 16})])
    assert loader_digest(batches) != loader_digest(batches[::-1])
    assert values_digest(X) != values_digest(X.reshape(2, 20)) != values_digest(X.numpy().astype(int))


def test_shuffling_and_seeded_noise_change_nothing_and_another_sample_does() -> None:
    y = torch.arange(20)
    assert loader_digest(loader(TensorDataset(X, y))) == loader_digest(loader(TensorDataset(X.clone(), y)))
    assert loader_digest(loader(TensorDataset(X, y))) != loader_digest(loader(TensorDataset(X, y.flip(0))))
    for draw in (lambda: float(torch.rand(())), lambda: float(np.random.rand())):  # noqa: NPY002
        before = torch.random.get_rng_state()
        found = [loader_digest(loader(Noisy(draw, shift))) for shift in (0, 0, 1)]
        assert found[0] == found[1] != found[2]
        assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", [Noisy, Broken])
def test_what_is_never_the_same_counts_by_its_size(kind: type[Noisy]) -> None:
    draw = np.random.default_rng().random
    assert loader_digest(loader(kind(draw))) == loader_digest(loader(kind(draw)))
    assert loader_digest(loader(kind(draw))) != loader_digest(loader(kind(draw, count=19)))


def test_a_loader_that_says_nothing_is_taken_as_it_is() -> None:
    class Endless:
        def __iter__(self) -> Any:
            raise AssertionError("it is not read")

    assert loader_digest(Endless()) == loader_digest(Endless())
