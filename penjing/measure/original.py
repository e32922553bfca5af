"""Quality by the original's own answers, for data without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from penjing.batches import take_apart
from penjing.measure.metric import Metric
from penjing.measure.predict import as_predict, names_of


def agreement(outputs: Tensor, theirs: Tensor) -> float:
    """The share of samples (of an image's points, say) whose highest score is the original's, 0 to 1.

    Args:
        outputs: Scores ``(N, classes, …)``.
        theirs: The original's.
    """
    return float((outputs.argmax(1) == theirs.argmax(1)).double().mean())


def fidelity(outputs: Tensor, theirs: Tensor) -> float:
    """R²: the share of the variance of the original's outputs that these explain; 1 is equal, 0 as good as
    the mean.

    Args:
        outputs: Of any shape.
        theirs: The original's.
    """
    theirs = theirs.double()
    error = (outputs.double() - theirs).square().sum()
    spread = (theirs - theirs.mean()).square().sum()
    return explained(float(error), float(spread), float(theirs.square().sum()))


def explained(error: float, spread: float, squares: float) -> float:
    """R² of sums over any number of outputs; outputs that do not vary count as if they did by rounding.

    Args:
        error: Squared differences from the original's outputs.
        spread: Squared differences of these from their mean.
        squares: Their squares.
    """
    return 1.0 - error / max(spread, 1e-12 * squares + 1e-30)


BY_ORIGINAL: dict[str, Metric] = {"agreement": agreement, "fidelity": fidelity}
"""Metrics by name whose targets are the original's outputs."""


def goes_by_original(metric: Metric | None) -> bool:
    """Whether a metric's targets are the original's outputs."""
    return any(metric is one for one in BY_ORIGINAL.values())  # torchmetrics' == makes a metric


def needing_no_labels(outputs: Tensor) -> Metric:
    """The one that fits outputs of this shape: scores of classes are compared by the highest."""
    return agreement if outputs.ndim == 2 and outputs.shape[1] > 1 else fidelity


class Answered:
    """Batches with what a network answers as their targets; their own targets are left out.

    Args:
        batches: A re-iterable, in the model's layout.
        network: Gives the network; it is asked once, when the first batch is.
    """

    def __init__(self, batches: Iterable[Any], network: Callable[[], nn.Module]) -> None:
        self._batches, self._network = batches, network

    @cached_property
    def _model(self) -> nn.Module:
        return self._network()

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        names = names_of(self._model)
        for batch in self._batches:
            inputs = take_apart(batch, names)[0]
            with as_predict(self._model) as predict:  # not while the reader works: it may be training
                answers = torch.as_tensor(predict(inputs).copy())
            yield inputs, answers
