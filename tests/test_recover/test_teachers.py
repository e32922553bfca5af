from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penjing.batches import Batch, Inputs, tensors
from penjing.recover.teachers import AnswerCache

BATCHES: dict[str, list[Inputs]] = {
    "sizes that vary": [torch.randn(3, 1, 6, 6), torch.randn(3, 1, 8, 8)],
    "equal content of another shape": [torch.zeros(3, 1, 6, 6), torch.zeros(3, 1, 4, 9)],
    "bf16": [torch.randn(3, 4).bfloat16()],
    "an input for all samples": [(torch.randn(3, 4), torch.ones(4)), (torch.randn(3, 4), torch.tensor(2.0))],
}


def answers(inputs: Inputs) -> tuple[Tensor, ...]:
    x, *factors = tensors(inputs)
    x = x.float() * (factors[0] if factors else 1)
    return x, x.flatten(1).sum(1)


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES.keys())
def test_remembered_answers_are_those_given_also_after_a_resume(batches: list[Inputs]) -> None:
    first, resumed = AnswerCache(100), AnswerCache(100)
    for inputs in batches:
        first.answer(Batch(inputs), lambda inputs=inputs: answers(inputs))  # type: ignore[misc]
    resumed.restore(first.tensors())

    def unasked() -> tuple[Tensor, ...]:
        raise AssertionError("the teacher runs again")

    for cache in (first, resumed):
        for inputs in batches:
            for found, given in zip(cache.answer(Batch(inputs), unasked), answers(inputs), strict=True):
                assert torch.equal(found, given)
