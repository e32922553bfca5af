"""How well a network answers as its original does, where the answers are no classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from penjing.batches import Batch, check, move, unpack
from penjing.errors import DataError
from penjing.graph.inputs import required_inputs
from penjing.measure.original import explained
from penjing.recover.teachers import Teacher, Teachers, check_alike


@torch.no_grad()
def fidelity(
    model: nn.Module,
    teacher: Teacher,
    data: Iterable[Any],
    *,
    device: torch.device,
    channels_last: bool = False,
) -> tuple[float, int]:
    """R²: the share of the variance of the original's outputs that the network's outputs explain.

    Args:
        model: The network; its train/eval flags are given back.
        teacher: The original.
        data: Batches; targets and answers that come with them are not looked at.
        device: Where the model is.
        channels_last: Memory order of images.

    Returns:
        The mean over the outputs (1 is equal, 0 as good as the mean), and the number of samples.

    Raises:
        DataError: no batches, NaN in the inputs.
        RecoverError: outputs of other shapes than the original's.
    """
    sums: list[Tensor] = []  # of each output: n, Σt, Σt², Σ(s−t)²
    samples = 0
    names = required_inputs(model)
    with Teachers((teacher, model), every_output=True) as both:
        both.to(device)
        for index, item in enumerate(data):
            batch = move(unpack(item, names), device, channels_last)
            check(batch, index, of="validation")
            (theirs, mine), _ = both.answer(Batch(batch.inputs))
            check_alike(mine, theirs)
            samples += batch.size
            found = [
                torch.stack(
                    [t.new_tensor(t.numel()).double(), t.double().sum(), t.double().square().sum(),
                     (s.double() - t.double()).square().sum()]
                )
                for s, t in zip(mine, theirs, strict=True)
            ]  # fmt: skip
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    if not samples:
        raise DataError("the validation data has no batches", remedy="Check its path, or leave val out")
    shares = []
    for n, total, squares, errors in (row.tolist() for row in sums):
        shares.append(explained(errors, squares - total * total / n, squares))
    return sum(shares) / len(shares), samples
