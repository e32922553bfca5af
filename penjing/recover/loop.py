"""The one training loop: it serves training from scratch and recovery from the original alike.

Read `Loop.run`, `Loop._epoch` and `Loop._step`: that is all there is; the loss of a step is made in
`Supervision.loss`. Everything else sets up, watches or records.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from penjing.batches import (
    Batch,
    ask,
    check,
    check_reiterable,
    count_batches,
    logits_of,
    move,
    share,
    unpack,
    used_up,
)
from penjing.errors import RecoverError
from penjing.events import Event
from penjing.graph.inputs import required_inputs
from penjing.recover import chance
from penjing.recover.checkpoint import (
    copied_tensors,
    load_checkpoint,
    model_tensors,
    restore_model,
    save_checkpoint,
)
from penjing.recover.dropout import dropout_at
from penjing.recover.ema import WeightAverage
from penjing.recover.guards import non_finite
from penjing.recover.job import Job
from penjing.recover.judge import Judge
from penjing.recover.memory import kept_memory
from penjing.recover.memory_order import miscomputed, put_channels_last_, takes_channels_last
from penjing.recover.mix import mix
from penjing.recover.optim import build_optimizer, optimizer_tensors, restore_optimizer, set_lr
from penjing.recover.precision import MIN_STEPS, can_gain, choose, speedup
from penjing.recover.processes import Processes
from penjing.recover.quality import quality
from penjing.recover.result import RecoverResult, StopReason
from penjing.recover.schedule import learning_rate
from penjing.recover.sparse import Sparse
from penjing.recover.start import Start
from penjing.recover.state import EpochSums, Progress
from penjing.recover.supervision import Moment, Supervision, num_labels

_SECONDS_BETWEEN_EVENTS = 0.25
_INTERPRETED = (
    "not compiled: networks read from ONNX files, and those that train in int8, are walked node by node, "
    "which torch.compile takes minutes to break into pieces"
)


class Loop:
    """One run: what is fixed is in the job; what moves is in `Progress`, model, optimizer and average."""

    def __init__(self, job: Job) -> None:
        self.job, self.config = job, job.config
        self.processes = Processes()
        self.accelerator = self.processes.accelerator
        self.device, self.rank, self.world = self.processes.device, self.processes.rank, self.processes.world
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.best_is_new = False
        self.channels_last = False
        self.names = required_inputs(job.model)

    def run(self) -> RecoverResult:
        """Set up, resume where there is something to resume, go through the epochs, give the result."""
        with chance.private_globals(), kept_memory(), self.processes.together(), ExitStack() as self.stack:
            chance.seed_globals(self.job.seed)
            self._set_up()
            self._resume()
            progress = self.progress
            progress.precision = progress.precision or self._precision()
            self._tell("start", message=f"{progress.precision}, at most {self._length()}")
            if self.job.val is None and (self.config.keep == "best" or self.config.patience is not None):
                self._tell("warning", message="keep='best' and patience do nothing without validation data")
            if progress.steps == 0 and self.total_steps:
                self._look_at_start()
            progress.stopped = progress.stopped or self._limit_reached()
            while progress.stopped is None:
                self._epoch()
                self._save()
            self._tell("end", message=progress.stopped.value)
            return self._result(progress.stopped)

    def _set_up(self) -> None:
        config = self.config
        if self.job.val is not None:
            check_reiterable(self.job.val, "validation data")
        per_epoch = math.ceil(count_batches(self.job.data) / config.grad_accumulation)
        self.epoch_steps = min(per_epoch, config.steps_per_epoch or per_epoch)
        self.total_steps = self.epoch_steps * config.epochs
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.model = copy.deepcopy(self.job.model).to(self.device)
        self.model.zero_grad(set_to_none=True)
        asked, networks = config.channels_last, (self.model, *self.job.teachers)
        self.channels_last = takes_channels_last(networks, self._first_inputs) if asked is None else asked
        if self.channels_last and (layer := miscomputed(self.model)):
            raise RecoverError(
                "with the channels last, the gradient of this convolution is wrong",
                layer=layer,
                remedy="Leave channels_last out, or set it to false",
            )
        if self.channels_last:
            put_channels_last_(self.model)
        else:
            self.model.to(memory_format=torch.contiguous_format)
        if self.job.val is not None:
            self.judge = Judge(self.job, self.processes, channels_last=self.channels_last)
        self.optimizer = build_optimizer(self.model, config)
        self.average = WeightAverage(self.model, config.ema) if config.ema else None
        self.wrapped: nn.Module = self.accelerator.prepare_model(self.model)
        self.forward: Any = self.wrapped
        if config.compile and _is_interpreted(self.model):
            self._tell("note", message=_INTERPRETED)
        elif config.compile:
            torch.compiler.reset()  # code compiled for an equal network does not know the hooks of this one
            self.forward = torch.compile(self.wrapped)
        self.stack.enter_context(dropout_at(self.model, config.dropout))
        self.sparse = Sparse(config, self.model, self.job.model) if config.regularize else None
        aims_elsewhere = self.sparse is not None and self.sparse.aims_elsewhere
        self.start = Start(guarded=self.job.stage == "recover" and not aims_elsewhere)
        self.supervision = Supervision(
            self.job, self.model, self.processes, self.stack, lambda said: self._tell("note", message=said)
        )
        if config.losses:
            self.supervision.aim(config.losses, self._first_inputs)

    def _precision(self) -> str:
        """The number format asked for, or the faster one by the first batch; all processes take the same."""
        if self.config.precision != "auto":
            return self.config.precision
        if self.total_steps < MIN_STEPS or not can_gain(self.device):
            return "fp32"
        model = copy.deepcopy(self.job.model).to(self.device).train()
        if self.channels_last:
            put_channels_last_(model)
        inputs = self._first_inputs()
        found = speedup(model, lambda asked: logits_of(ask(asked, inputs, "model")), self.device)
        found = self.processes.of_the_first(found)
        self._tell("note", {"bf16_speedup": found}, "a training step in bf16 against one in fp32")
        return choose(found)

    @property
    def _bf16(self) -> bool:
        return self.progress.precision == "bf16"

    def _look_at_start(self) -> None:
        """Validate what the run begins with, and bring its batch norms to what they will read."""
        if self.job.stage != "recover":
            return
        progress, samples = self.progress, self.config.recalibrate
        if self.job.val is not None:
            progress.start = self.start.look(self.model, self._judged, self._moved(), samples)
            self._tell("note", progress.start, "the weights that the run begins with")
        if samples:
            from penjing.prune.recalibrate import rebase_norms_  # loads only when it is used

            rebase_norms_(self.model, ((x, None) for x in self._as_trained()), max_samples=samples)
            self.processes.share_tensors(self.model)
        if self.average is not None:
            restore_model(self.average.model, model_tensors(self.model))

    def _as_trained(self) -> Iterator[Any]:
        """The inputs of the training data as a step takes them, mixed too."""
        mixup, cutmix = self.config.mixup, self.config.cutmix
        for number, inputs in enumerate(self._moved()):
            mixes = (mixup or cutmix) and isinstance(inputs, Tensor) and inputs.is_floating_point()
            draws = chance.derived_generator(self.job.seed, 0, number, self.rank)
            yield mix(inputs, None, 0, draws, mixup=mixup, cutmix=cutmix)[0] if mixes else inputs

    def _moved(self) -> Iterator[Any]:
        """The inputs of the training data, where the model is; generators of a loader stay as they are."""
        self._set_epoch(0)
        held = [(one, one.get_state()) for one in chance.loader_generators(self.job.data)]
        try:
            for item in self.job.data:
                batch = unpack(item, self.names)
                yield move(Batch(batch.inputs), self.device, self.channels_last).inputs
        finally:
            for generator, state in held:
                generator.set_state(state)

    def _first_inputs(self) -> Any:
        """Those of the first batch, where the model is."""
        return next(iter(self._moved()))

    def _drawn_epoch(self) -> int:
        """The epoch whose draws of chance this one takes."""
        distinct, epoch = self.config.distinct_epochs, self.progress.epoch
        return epoch if distinct is None else epoch % distinct

    def _see_repeats(self) -> None:
        """Say so where the first epoch that should have been seen before was not."""
        cache = self.supervision.cache
        if cache is None or self.progress.epoch != self.config.distinct_epochs:
            return
        if not cache.hits and len(cache.known) < cache.capacity:
            self._tell(
                "warning",
                message="distinct_epochs is set, but the data did not repeat, so the teacher runs in every "
                "epoch; give the loader a set_epoch(epoch) that chooses order and augmentation",
            )

    def _set_epoch(self, epoch: int) -> None:
        """Tell the epoch to the data and to the samplers of a loader, each once."""
        for holder in chance.loader_parts(self.job.data):
            if callable(set_epoch := getattr(holder, "set_epoch", None)):
                set_epoch(epoch)

    # ---------------------------------------------------------------------------------------------- training

    def _epoch(self) -> None:
        """Train for one pass, validate, record, and see whether it is time to stop."""
        progress, config = self.progress, self.config
        began, meter, told = time.perf_counter(), EpochSums(), 0.0
        self.wrapped.train()
        for index, window in enumerate(self._pass()):
            self._step(window, index, meter)
            if time.perf_counter() - told > _SECONDS_BETWEEN_EVENTS:
                told = time.perf_counter()
                self._tell("progress", meter.means() | {"lr": self.lr})
            if self._limit_reached():
                break
        if not meter.samples:
            raise RecoverError(
                f"every batch has fewer samples than there are processes ({self.world})",
                remedy="Use larger batches, or fewer processes",
            )
        self._see_repeats()
        if self.sparse is not None:
            self.sparse.epoch_(self.model, *([] if self.average is None else [self.average.model]))
        progress.epoch += 1
        progress.stopped = self._limit_reached()
        record = {
            "epoch": progress.epoch,
            "steps": progress.steps,
            "lr": self.lr,
        }
        record |= meter.reduced(self.processes).means()
        if self.job.val is not None and (progress.stopped or progress.epoch % config.eval_every == 0):
            record |= self._validate()
        seconds = time.perf_counter() - began
        progress.history.append(record)
        progress.timing.append(
            {"epoch": progress.epoch, "seconds": seconds, "samples_per_second": meter.samples / seconds}
        )
        self._tell("metric", record)

    def _pass(self) -> Iterator[list[Any]]:
        """The windows of this epoch.

        A loader draws its order no later than its first batch: from what all processes share, where they
        share out the batches. What the steps draw (dropout) is each process's own.

        Raises:
            DataError: when there is no batch.
        """
        draws, config = (self.job.seed, self._drawn_epoch()), self.config
        chance.seed_globals(*draws, *(() if config.workers_split else (self.rank,)))
        self._set_epoch(self._drawn_epoch())
        windows = _windows(self.job.data, config.grad_accumulation, self.epoch_steps)
        first = next(windows, None)
        if first is None:
            raise used_up(f"the data gives no batch in epoch {self.progress.epoch + 1}")
        chance.seed_globals(*draws, self.rank)
        yield first
        yield from windows

    def _step(self, window: Sequence[Any], index: int, meter: EpochSums) -> None:
        """One optimizer step on the batches of ``window``, the ``index``-th of this epoch."""
        config, progress = self.config, self.progress
        done = self._share_done()
        self.lr = learning_rate(config, done)
        set_lr(self.optimizer, self.lr)
        batches = self._own(window, index * config.grad_accumulation)
        if not batches:
            return
        if not self.supervision.settled:
            with chance.private_globals():
                self.supervision.settle(move(batches[0][1], self.device, self.channels_last))
        samples = sum(batch.size for _, batch in batches)
        labels = [num_labels(batch, config.ignore_index) for _, batch in batches]
        all_labels = self.processes.mean(sum(labels))
        for (number, batch), own in zip(batches, labels, strict=True):
            batch = move(batch, self.device, self.channels_last)
            last = number == batches[-1][0]
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                part = batch.size / samples
                weight = own / all_labels / part if all_labels else 1.0
                moment = Moment(number, self._drawn_epoch(), progress.steps + 1, done, self._bf16)
                loss = self.supervision.loss(self.forward, batch, moment, meter, weight)
                self.accelerator.backward(loss * part)
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            raise non_finite(self.model, batch.inputs, progress.steps + 1, f"the gradient norm is {norm}")
        if self.sparse is not None:
            self.sparse.gradient_(batch.inputs, done)
        self.optimizer.step()
        if self.sparse is not None:
            self.sparse.step_(self.lr)
        self.optimizer.zero_grad(set_to_none=True)
        progress.steps += 1
        if self.average is not None:
            self.average.update(self.model, progress.steps)

    def _own(self, window: Sequence[Any], first: int) -> list[tuple[int, Batch]]:
        """What this process works on of each batch, with the batch's number, counted from ``first``; a batch
        with fewer samples than there are processes is left out.
        """
        batches: list[tuple[int, Batch]] = []
        for number, item in enumerate(window, first):
            batch = unpack(item, self.names)
            own = share(batch, self.rank, self.world) if self.config.workers_split else batch
            if own is None:
                said = f"batch {number} is left out: fewer samples than the {self.world} processes"
                self._tell("note", message=said)
                continue
            check(own, number)
            batches.append((number, own))
        return batches

    def _gradient_norm(self) -> float:
        """Total gradient norm; gradients are clipped to ``grad_clip`` where that is set."""
        params = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.config.grad_clip if self.config.grad_clip is not None else math.inf
        return float(torch.nn.utils.clip_grad_norm_(params, limit))

    # ---------------------------------------------------------------------------------------------- stopping

    def _elapsed(self) -> float:
        """Seconds used."""
        return self.processes.of_the_first(self.progress.elapsed())

    def _share_done(self) -> float:
        """How much of the run is done, 0 to 1."""
        done = self.progress.steps / max(self.total_steps, 1)
        if self.config.max_seconds is not None:
            done = max(done, self._elapsed() / self.config.max_seconds)
        return min(done, 1.0)

    def _limit_reached(self) -> StopReason | None:
        """Why to stop now, if there is a reason."""
        config, progress = self.config, self.progress
        if config.patience is not None and progress.waiting >= config.patience:
            return StopReason.PATIENCE
        if config.max_steps is not None and progress.steps >= config.max_steps:
            return StopReason.MAX_STEPS
        if progress.epoch >= config.epochs:
            return StopReason.EPOCHS
        if config.max_seconds is not None and self._elapsed() >= config.max_seconds:
            return StopReason.MAX_SECONDS
        return None

    def _judged(self, model: nn.Module) -> dict[str, float]:
        """What validation finds of a model."""
        return self.judge(model, bf16=self._bf16)

    def _validate(self) -> dict[str, float]:
        """What validation finds; remembers the best weights."""
        progress = self.progress
        source = self.model if self.average is None else self.average.model
        record = self._judged(source)
        found = quality(record)
        assert found is not None
        if progress.best_epoch is None or found > progress.best_quality:
            progress.best_quality, progress.best_epoch, progress.waiting = found, progress.epoch, 0
            if self.config.keep == "best":
                self.best = copied_tensors(source)
                self.best_is_new = True
        else:
            progress.waiting += 1
            progress.stopped = progress.stopped or self._limit_reached()
        return record

    # ---------------------------------------------------------------------------------------------- keeping

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be this run's."""
        return {"stage": self.job.stage, "seed": self.job.seed, "world": self.world, **self.config.to_dict()}

    def _save(self) -> None:
        if self.job.checkpoint is None:
            return
        if self.accelerator.is_main_process:
            parts = {"model": model_tensors(self.model), "optimizer": optimizer_tensors(self.optimizer)}
            parts["average"] = {} if self.average is None else model_tensors(self.average.model)
            parts["best"] = self.best if self.best_is_new else {}
            parts["start"] = self.start.tensors if self.start.is_new else {}
            parts["cache"] = {} if self.supervision.cache is None else self.supervision.cache.tensors()
            generators = chance.loader_generators(self.job.data)
            parts["generators"] = {str(i): g.get_state() for i, g in enumerate(generators)}
            state = {"run": self._identity(), "progress": self.progress.to_dict()}
            save_checkpoint(self.job.checkpoint, state, parts, f"{self.progress.epoch:05d}")
        self.best_is_new = self.start.is_new = False
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        if self.job.checkpoint is None:
            return
        found = load_checkpoint(self.job.checkpoint)
        self._check_all_see(0 if found is None else found[0]["progress"]["epoch"])
        if found is None:
            return
        state, parts = found
        mine, theirs = self._identity(), state["run"]
        changed = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
        if changed:
            key = changed[0]
            raise RecoverError(
                f"the checkpoint was made with {key} = {theirs.get(key)!r}, this run has {mine.get(key)!r}",
                layer=str(self.job.checkpoint),
                remedy="Resume with the same options, or delete the checkpoint folder to start again",
            )
        self.progress = Progress.from_dict(state["progress"])
        restore_model(self.model, parts["model"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        if self.average is not None:
            restore_model(self.average.model, parts["average"])
        self.best, self.start.tensors = parts.get("best", {}), parts.get("start", {})
        self.supervision.restore(parts.get("cache", {}))
        for index, generator in enumerate(chance.loader_generators(self.job.data)):
            generator.set_state(parts["generators"][str(index)])
        self._tell("note", message=f"resumed after epoch {self.progress.epoch}")

    def _check_all_see(self, epoch: int) -> None:
        """Processes that go on from different places would train different networks."""
        if self.processes.mean(epoch) != epoch:
            raise RecoverError(
                f"the {self.world} processes do not see the same checkpoint",
                layer=str(self.job.checkpoint),
                remedy="Put it on a file system that all of them share, or delete it to start again",
            )

    def _result(self, stopped: StopReason) -> RecoverResult:
        model, progress = self.model, self.progress
        kept = self._choose()
        if kept != "last":
            restore_model(model, {"best": self.best, "start": self.start.tensors}[kept])
        elif self.average is not None:
            restore_model(model, model_tensors(self.average.model))
        self.processes.share_buffers(model)
        model.zero_grad(set_to_none=True)
        if self.channels_last:
            model.to(memory_format=torch.contiguous_format)
        home = next((p.device for p in self.job.model.parameters()), self.device)
        return RecoverResult(
            model=model.to(home).eval(),
            history=progress.history,
            timing=progress.timing,
            best_epoch=progress.best_epoch,
            steps=progress.steps,
            seconds=progress.elapsed(),
            stopped=stopped,
            precision=progress.precision,
            config=self.config.to_dict(),
            start=progress.start,
            kept=kept,
        )

    def _choose(self) -> str:
        """Which weights to give back: ``"last"``, ``"best"`` or ``"start"``."""
        progress = self.progress
        kept = "best" if self.config.keep == "best" and self.best else "last"
        validated = [found for record in progress.history if (found := quality(record)) is not None]
        reached = progress.best_quality if kept == "best" else validated[-1] if validated else None
        if complaint := self.start.complaint(progress.start, reached):
            self._tell("warning", message=complaint)
            return "start"
        return kept

    def _length(self) -> str:
        """How long the run may take, in words."""
        steps, seconds = f"{self.total_steps} steps", self.config.max_seconds
        return steps if seconds is None else f"{seconds:.0f} s or {steps}"

    def _expected_steps(self) -> int:
        """Steps in all; where the clock may end the run first, as many as it leaves at the pace so far."""
        seconds, steps = self.config.max_seconds, self.progress.steps
        # this process's own clock: only the first one tells, so it cannot ask the others
        share = self.progress.elapsed() / seconds if seconds is not None and steps else 0.0
        return min(self.total_steps, max(steps, math.ceil(steps / share))) if share > 0 else self.total_steps

    def _tell(self, kind: str, metrics: Mapping[str, float] | None = None, message: str = "") -> None:
        if self.rank == 0:
            self.job.listen(
                Event(
                    self.job.stage,
                    kind,
                    self.progress.steps,
                    self._expected_steps(),
                    "step",
                    metrics or {},
                    message,
                )
            )


def _is_interpreted(model: nn.Module) -> bool:
    """Whether a graph of ONNX nodes is walked in it."""
    from penjing.models.onnx_door import OnnxModel  # brings ONNX, which training does without

    return any(isinstance(part, OnnxModel) for part in model.modules())


def _windows(data: Iterable[Any], size: int, limit: int) -> Iterator[list[Any]]:
    """At most ``limit`` runs of ``size`` consecutive batches; the last one may be shorter."""
    batches = iter(data)
    for _ in range(limit):
        window = list(islice(batches, size))
        if not window:
            return
        yield window
