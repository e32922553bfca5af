"""How good a network is on the validation data of a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from penjing.batches import ask, classifies, logits_of, move, unpack
from penjing.errors import RecoverError
from penjing.graph.inputs import required_inputs
from penjing.graph.views import eval_view
from penjing.measure.metric import scored
from penjing.recover.evaluate import check_total, evaluate
from penjing.recover.fidelity import fidelity
from penjing.recover.job import Job
from penjing.recover.processes import Processes


class Judge:
    """Judges by the user's metric; by accuracy and loss where the targets name classes of the outputs; else
    by how well a network answers as the original does.

    Args:
        job: The run; it has validation data.
        processes: Those that share out its batches.
        channels_last: Whether the inputs go in that memory order.
    """

    def __init__(self, job: Job, processes: Processes, *, channels_last: bool) -> None:
        assert job.val is not None
        self.job, self.val, self.processes, self.channels_last = job, job.val, processes, channels_last
        self._classes: bool | None = None

    def __call__(self, model: nn.Module, *, bf16: bool) -> dict[str, float]:
        """The record of a network; in bfloat16 where that is trained in and accuracy judges."""
        job, processes = self.job, self.processes
        device, channels_last = processes.device, self.channels_last
        processes.share_buffers(model)
        if job.metric is not None:
            value, samples = scored(job.metric, model, self.val)
            return {"val_metric": processes.of_the_first(value), "val_n": samples}
        if self._classes is None:
            self._classes = self._names_classes(model)
        if not self._classes:
            if not job.teachers:
                judge = (
                    "metric=, a function of outputs and targets" if job.stage == "recover" else "int64 labels"
                )
                raise RecoverError(
                    "the validation targets are not classes of the outputs, so there is no accuracy",
                    remedy=f"Give {judge}, or leave val out",
                )
            value, samples = fidelity(
                model, job.teachers[0], self.val, device=device, channels_last=channels_last
            )
            return {"val_fidelity": processes.of_the_first(value), "val_n": samples}
        ignored = job.config.ignore_index
        counts = evaluate(
            model,
            self.val,
            device=device,
            channels_last=channels_last,
            bf16=bf16,
            ignored=ignored,
            rank=processes.rank,
            world=processes.world,
        )
        right, total, loss = processes.sums(*counts)
        check_total(total, ignored)
        record = {"val_accuracy": right / total, "val_n": total}
        return record | {"val_loss": loss / total} if math.isfinite(loss) else record

    def _names_classes(self, model: nn.Module) -> bool:
        """Whether the targets are classes of the outputs, by the first batch; without targets, whether there
        is no original to be compared with.
        """
        item = next(iter(self.val), None)
        if item is None:
            return True  # what is wrong is said where it is measured
        batch = move(unpack(item, required_inputs(model)), self.processes.device, self.channels_last)
        with torch.no_grad(), eval_view(model):
            logits_NK = logits_of(ask(model, batch.inputs, "model"), batch.target)
        return not self.job.teachers if batch.target is None else classifies(batch.target, logits_NK)
