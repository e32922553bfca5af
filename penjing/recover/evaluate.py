"""Accuracy and loss of a model on labelled data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.batches import IGNORED, ask, check, counts_of, labels_of, logits_of, move, unpack
from penjing.errors import DataError
from penjing.graph.inputs import required_inputs
from penjing.graph.remembered import put_back
from penjing.modes import eval_mode


def share_right(model: nn.Module, data: Iterable[Any], *, ignored: int = IGNORED) -> float:
    """Accuracy in eval mode: the share of the samples that `evaluate` counts as right.

    Raises:
        DataError: As from `evaluate`, and where no label counts.
    """
    right, total, _ = evaluate(model, data, ignored=ignored)
    check_total(total, ignored)
    return right / total


def check_total(total: float, ignored: int) -> None:
    """Refuse validation data of which nothing counts.

    Raises:
        DataError: naming the label.
    """
    if not total:
        raise DataError(
            f"every label of the validation data is {ignored}, which is ignored",
            remedy="Check the labels and ignore_index, or leave val out",
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    device: torch.device | None = None,
    channels_last: bool = False,
    bf16: bool = False,
    ignored: int = IGNORED,
    rank: int = 0,
    world: int = 1,
) -> tuple[int, int, float]:
    """Run the model in eval mode over the data (its train/eval flags are given back).

    Args:
        model: The network.
        data: Labelled batches.
        device: Where it runs; by default where the model is.
        channels_last: Memory order of images.
        bf16: Autocast.
        ignored: The label of what does not count.
        rank: This process.
        world: Of so many.

    Returns:
        Number right, number of samples, and the sum of the cross-entropies in nats, of what counts in the
        batches that process ``rank`` of ``world`` works on (every ``world``-th batch).

    Raises:
        DataError: no batches, no labels, labels out of range, NaN.
    """
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    right = total = batches = 0
    loss = 0.0
    names = required_inputs(model)
    with put_back(model), eval_mode(model):
        for index, item in enumerate(data):
            batches += 1
            if index % world != rank:
                continue
            batch = move(unpack(item, names), device, channels_last)
            if batch.target is None:
                raise DataError(
                    "validation data has no labels",
                    remedy="Give batches as (inputs, target), or leave val out",
                )
            check(batch, index, of="validation")
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                logits_NK = logits_of(ask(model, batch.inputs, "model"), batch.target).float()
            if (labels_N := labels_of(batch.target, logits_NK)) is None:
                raise DataError(
                    f"the validation targets ({_described(batch.target)}) are not classes of the outputs",
                    remedy="Give int64 labels, or judge by a metric",
                )
            check(batch, index, logits_NK.shape[1], of="validation", ignored=ignored)
            counts_N = counts_of(batch.target, labels_N, ignored)  # what is ignored may be a class
            logits_NK, labels_N = logits_NK[counts_N], labels_N[counts_N]
            right += int((logits_NK.argmax(1) == labels_N).sum())
            total += len(labels_N)
            loss += float(F.cross_entropy(logits_NK, labels_N, reduction="sum"))
    if batches == 0:
        raise DataError("the validation data has no batches", remedy="Check its path, or leave val out")
    return right, total, loss if math.isfinite(loss) else math.inf


def _described(target: Any) -> str:
    if not isinstance(target, Tensor):
        return type(target).__name__
    return f"{str(target.dtype).removeprefix('torch.')} of shape {list(target.shape)}"
