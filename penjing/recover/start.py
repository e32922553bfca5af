"""What a run begins with: made as good as it can be without a step, and kept in case no step helps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from penjing.recover.checkpoint import copied_tensors, restore_model
from penjing.recover.quality import quality, quality_name, shown

Measure = Callable[[nn.Module], dict[str, float]]


class Start:
    """The weights a run begins with, as one candidate for what it gives back.

    Args:
        guarded: Whether the run may give them back; otherwise they are not kept.

    Attributes:
        tensors: The weights on the CPU; empty where they are not kept.
        is_new: Whether no checkpoint holds them yet.
    """

    def __init__(self, *, guarded: bool) -> None:
        self.guarded = guarded
        self.tensors: dict[str, Tensor] = {}
        self.is_new = False

    def look(
        self, model: nn.Module, measure: Measure, inputs: Iterable[Any], samples: int
    ) -> dict[str, float]:
        """Validate the model, batch-norm statistics measured anew where validation finds that no worse.

        Running statistics that are far from those of the batches would spoil a short run: training adapts the
        weights to the batches', and validation uses the others.

        Args:
            model: The network; its statistics may be changed.
            measure: Validates a network.
            inputs: Training inputs.
            samples: Most of them used; 0 leaves the statistics alone.

        Returns:
            What was measured; ``recalibrated`` is 1.0 where the statistics are new.
        """
        from penjing.prune.recalibrate import recalibrate_  # the pruning package loads only when it is used

        record = measure(model)
        given = copied_tensors(model) if samples else {}
        if samples and recalibrate_(model, ((x, None) for x in inputs), max_samples=samples):
            found = measure(model)
            if _quality(found) < _quality(record):
                restore_model(model, given)
            else:
                record = found | {"recalibrated": 1.0}
        if self.guarded:
            self.tensors = copied_tensors(model)
            self.is_new = True
        return record

    def complaint(self, record: Mapping[str, float], reached: float | None) -> str:
        """Why the weights from before are the better ones; "" where they are not, or are not known.

        Args:
            record: What `look` gave.
            reached: What validation found of the weights the run would give back; None without validation.
        """
        if not self.tensors or reached is None or reached >= _quality(record):
            return ""
        name = quality_name(record)
        after, then = shown(record, reached), shown(record, _quality(record))
        return (
            f"training did not help: validation {name} {after} after it, {then} before; the weights from "
            "before are given back"
        )


def _quality(record: Mapping[str, float]) -> float:
    found = quality(record)
    assert found is not None, "the start is looked at with validation data only"
    return found
