"""What a batch teaches: what is minimised is settled here, the teachers are asked, the loss is made."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.batches import (
    Batch,
    ask,
    between,
    call_model,
    check,
    classifies,
    counts_of,
    labels_of,
    logits_of,
    outputs_of,
)
from penjing.errors import RecoverError
from penjing.graph.views import eval_view
from penjing.recover import chance
from penjing.recover.config import LossTerm
from penjing.recover.features import Taps
from penjing.recover.guards import non_finite
from penjing.recover.job import Job
from penjing.recover.mix import mix, mixable
from penjing.recover.objective import Objective, default_terms, with_blocks
from penjing.recover.processes import Processes
from penjing.recover.state import EpochSums
from penjing.recover.teachers import AnswerCache, Teachers, check_alike, only_in_training


@dataclass(frozen=True)
class Moment:
    """Where in the run a batch stands.

    Attributes:
        number: The batch's, in its epoch.
        epoch: Whose draws of chance are taken.
        step: The optimizer step it belongs to, from 1.
        done: How much of the run is done, 0 to 1.
        bf16: Whether it is computed in bfloat16.
    """

    number: int
    epoch: int
    step: int
    done: float
    bf16: bool


class Supervision:
    """The losses of a run and whom they ask.

    Args:
        job: The run.
        model: The network that learns.
        processes: Those that learn together.
        stack: What is attached to the networks is taken off when it closes.
        note: Told what a user should know.
    """

    def __init__(
        self, job: Job, model: nn.Module, processes: Processes, stack: ExitStack, note: Callable[[str], None]
    ) -> None:
        self.job, self.config, self.model, self.processes = job, job.config, model, processes
        self._stack, self._note = stack, note
        self._objective: Objective | None = None
        self._taps: Taps | None = None
        self._saved: dict[str, Tensor] = {}
        self._num_classes: int | None = None

    @property
    def settled(self) -> bool:
        """Whether it is known what is minimised."""
        return self._objective is not None

    @property
    def cache(self) -> AnswerCache | None:
        """The remembered answers; None before it is settled what is minimised, too."""
        return None if self._objective is None else self._teachers.cache

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put back what the cache of an interrupted run remembered."""
        self._saved = saved
        if self.cache is not None:
            self.cache.restore(saved)

    # ------------------------------------------------------------------------------------- what is minimised

    def settle(self, batch: Batch) -> None:
        """Settle what is minimised where the options do not say: by what the first batch has to learn from,
        and, where a plan lines them up, by the blocks of both networks.
        """
        job = self.job
        with torch.no_grad(), eval_view(self.model):
            output = ask(self.model, batch.inputs, "model")
        brought, labelled = batch.teacher_logits is not None, batch.target is not None
        classes = classifies(batch.target, logits_of(output, batch.target))
        if not (labelled or brought) and len(outputs_of(output, batch.size)) > 1:
            classes = False  # nobody says that the first output is the one that is meant
        terms = default_terms(labelled, bool(job.teachers) or brought, classes=classes)
        # features are not remembered: where answers are, the original would have to run again for them
        if job.plan is not None and len(job.teachers) == 1 and not (brought or self._remembered):
            try:
                return self.aim(with_blocks(terms), lambda: batch.inputs)
            except RecoverError as error:
                self._note(f"blocks are not held to the original's: {error.cause}")
        return self.aim(terms, lambda: batch.inputs)

    def aim(self, terms: Sequence[LossTerm], inputs: Callable[[], Any]) -> None:
        """Minimise these terms, and tap the features they look at; ``inputs`` gives a batch's."""
        job = self.job

        def few() -> Any:
            return between(inputs(), 0, 2)

        self._objective = Objective(
            job.config,
            terms,
            self.model,
            job.teachers[0] if job.teachers else None,
            job.plan,
            example=few,
        )
        specs, every = self._objective.specs, self._objective.needs_outputs
        asked = job.teachers if self._objective.needs_teacher else ()
        why = only_in_training(self.model, asked, few()) if every else ""
        if why:
            self._note(why)
        teachers = Teachers(asked, specs, self._remembered, every_output=every, as_trained=bool(why))
        self._teachers = self._stack.enter_context(teachers)
        self._teachers.to(self.processes.device)
        self._taps = self._stack.enter_context(Taps(self.model, specs)) if specs else None
        if self.cache is not None:
            self.cache.restore(self._saved)

    @property
    def _remembered(self) -> int:
        """Most samples whose teacher logits are kept."""
        if self.config.teacher_cache is not None:
            return self.config.teacher_cache
        return sys.maxsize if self.config.distinct_epochs else 0

    # ---------------------------------------------------------------------------------------------- the loss

    def loss(
        self, forward: Callable[..., Any], batch: Batch, moment: Moment, meter: EpochSums, label_weight: float
    ) -> Tensor:
        """The loss of one batch, checked; adds to the meter.

        Args:
            forward: Calls the network that learns.
            batch: The batch, where the network is.
            moment: Where in the run it stands.
            meter: The sums of its epoch.
            label_weight: Of losses with labels: how much more the batch has of the step's labels than of its
                samples.

        Raises:
            RecoverError: a batch that does not teach what is minimised; a loss that is not finite, or that
                depends on nothing that is trained.
        """
        objective, config = self._objective, self.config
        assert objective is not None, "what is minimised is settled before the first loss"
        target = batch.target
        if config.mixup or config.cutmix:
            batch, target = self._mixed(objective, batch, moment)
        autocast = torch.autocast(self.processes.device.type, dtype=torch.bfloat16, enabled=moment.bf16)
        with autocast:
            output = ask(forward, batch.inputs, "model")
        logits_NK = logits_of(output, batch.target)
        labels_N = labels_of(batch.target, logits_NK)
        objective.check(batch, bool(self.job.teachers), logits_NK)
        counts = classifies(batch.target, logits_NK) and objective.needs_target
        check(batch, moment.number, logits_NK.shape[1] if counts else None, ignored=config.ignore_index)
        with autocast:
            answers, features = self._teachers.answer(batch)
        outputs = outputs_of(output, batch.size) if objective.needs_outputs else (logits_NK,)
        for theirs in answers:
            scores = (logits_of(theirs[0], batch.target),)
            check_alike(
                outputs,
                theirs if objective.needs_outputs else scores,
                lambda: self._in_eval_mode(batch, every=objective.needs_outputs),
            )
        loss, parts = objective(
            outputs,
            self._taps.features if self._taps is not None else {},
            answers,
            features,
            labels_N if target is batch.target and not _is_soft(target) else target,
            moment.done,
            labels=batch.target,
            label_weight=label_weight,
        )
        if not loss.requires_grad:
            raise RecoverError(
                "the loss depends on no parameter that is trained",
                remedy="Unfreeze layers before the place it looks at, or add a loss on the outputs",
            )
        if self.processes.world > 1:  # gradients are exchanged once all that the scores depend on have theirs
            loss = loss + 0 * logits_NK.sum()
        if not math.isfinite(value := float(loss.detach())):
            raise non_finite(self.model, batch.inputs, moment.step, f"the loss is {value}")
        right = None
        if labels_N is not None:
            right = logits_NK.detach().argmax(1) == labels_N
            right = right[counts_of(batch.target, labels_N, config.ignore_index)]
        meter.add(len(logits_NK), value, {name: float(part) for name, part in parts.items()}, right)
        return loss

    def _in_eval_mode(self, batch: Batch, *, every: bool) -> Sequence[Tensor]:
        """What the student gives in eval mode: all outputs, or the scores alone, by what is compared."""
        with torch.no_grad(), eval_view(self.model):
            output = ask(self.model, batch.inputs, "model")
        return outputs_of(output, batch.size) if every else (logits_of(output, batch.target),)

    def _mixed(self, objective: Objective, batch: Batch, moment: Moment) -> tuple[Batch, Tensor | None]:
        """The batch with mixed inputs, and its mixed targets: a function of seed, epoch and number.

        Raises:
            RecoverError: inputs or targets that cannot be mixed, or answers that were given for other inputs.
        """
        reads_labels, asks = objective.needs_target, bool(self.job.teachers)
        x, target = mixable(batch, moment.number, self.config, labels=reads_labels, asks=asks)
        classes = 0
        if target is not None:
            classes = self._classes_of(x)
            check(batch, moment.number, classes)
        draws = chance.derived_generator(self.job.seed, moment.epoch, moment.number, self.processes.rank)
        mixed, target_NK = mix(
            x,
            target,
            classes,
            draws,
            mixup=self.config.mixup,
            cutmix=self.config.cutmix,
        )
        return Batch(mixed, batch.target, None), target_NK

    def _classes_of(self, x: Tensor) -> int:
        """Classes of the model, asked once with a single sample in eval mode."""
        if self._num_classes is None:
            with torch.no_grad(), eval_view(self.model):
                self._num_classes = logits_of(call_model(self.model, x[:1])).shape[1]
        return self._num_classes


def num_labels(batch: Batch, ignored: int) -> int:
    """How many labels count; with probabilities, or without labels, each sample does."""
    target = batch.target
    if not isinstance(target, Tensor) or target.is_floating_point():
        return batch.size
    return int((target != ignored).sum())


def _is_soft(target: Any) -> bool:
    return isinstance(target, Tensor) and target.is_floating_point()
