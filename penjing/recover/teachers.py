"""The teachers' answers to a batch: run, remembered or brought along by the data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from penjing.batches import Batch, ask, count_samples, has_each, map_inputs, outputs_of, tensors
from penjing.errors import RecoverError
from penjing.graph.remembered import put_back
from penjing.modes import eval_mode, train_mode, training_form
from penjing.recover import chance
from penjing.recover.features import FeatureSpec, Taps, align

Teacher = nn.Module | Callable[[Any], Tensor]


class Teachers:
    """Original networks that answer without gradient, in eval mode as a rule, for the time of a ``with``
    block.

    Their modules are not changed: what their forwards write, train/eval flags and devices are given back.

    Args:
        teachers: Modules, or functions from inputs to logits.
        specs: Where features are taken, in the first teacher, and which channels of them are asked for.
        cache: Most samples whose answers are remembered (one teacher only).
        every_output: Give all outputs, not only the scores.
        as_trained: Answer in the form of training mode; see `penjing.modes.training_form`.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        specs: Sequence[FeatureSpec] = (),
        cache: int = 0,
        *,
        every_output: bool = False,
        as_trained: bool = False,
    ) -> None:
        self.teachers = tuple(teachers)
        self.cache = AnswerCache(cache) if cache and len(self.teachers) == 1 and not specs else None
        self._specs, self._every_output = specs, every_output
        self._mode = training_form if as_trained else eval_mode
        self._taps: Taps | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for teacher in self.teachers:
            if isinstance(teacher, nn.Module):
                self._stack.enter_context(put_back(teacher))
                self._stack.enter_context(self._mode(teacher))
        if self._specs:
            first = self.teachers[0] if self.teachers else None
            if not isinstance(first, nn.Module):
                raise RecoverError(
                    "feature losses need the teacher as a module, to look inside",
                    remedy="Pass the original nn.Module as the teacher, or use logit losses only",
                )
            self._taps = self._stack.enter_context(Taps(first, self._specs))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def to(self, device: torch.device) -> None:
        """Move modules to ``device``; they go back when the block ends."""
        for teacher in self.teachers:
            if isinstance(teacher, nn.Module):
                here = next((p.device for p in teacher.parameters()), device)
                if here != device:
                    self._stack.callback(teacher.to, here)
                    teacher.to(device)

    @torch.no_grad()
    def answer(self, batch: Batch) -> tuple[list[tuple[Tensor, ...]], dict[str, tuple[Tensor, Tensor]]]:
        """Outputs ``[N, …]`` of each teacher, the scores first, and features by key as (kept channels, all
        channels).

        Logits that the data carries stand for the teachers' own.
        """
        if batch.teacher_logits is not None and not self._specs:
            return [(batch.teacher_logits,)], {}
        if self.cache is not None:
            return [self.cache.answer(batch, lambda: self._run(self.teachers[0], batch))], {}
        answers = [self._run(teacher, batch) for teacher in self.teachers]
        if batch.teacher_logits is not None:
            answers = [(batch.teacher_logits,)]
        if self._taps is None:
            return answers, {}
        full = self._taps.features
        return answers, {spec.key: (align(spec, full[spec.key]), full[spec.key]) for spec in self._specs}

    def _run(self, teacher: Teacher, batch: Batch) -> tuple[Tensor, ...]:
        found = outputs_of(ask(teacher, batch.inputs, "teacher", RecoverError), batch.size, RecoverError)
        return tuple(output.float() for output in (found if self._every_output else found[:1]))


def only_in_training(student: nn.Module, teachers: Sequence[Teacher], inputs: Any) -> str:
    """Why teachers should answer in the form of training mode: the student, which trains, gives outputs of
    other shapes than they do in eval mode, and then of the same. "" where that is not so, or where their
    answers would go by chance, or move what they measure.

    Args:
        student: The network that learns; left as it is.
        teachers: The originals; left as they are.
        inputs: Of a few samples.
    """
    modules = [teacher for teacher in teachers if isinstance(teacher, nn.Module)]
    if not modules or len(modules) < len(teachers):
        return ""

    def asked(model: nn.Module, mode: Callable[[nn.Module], AbstractContextManager[None]]) -> list[Tensor]:
        home = next((p.device for p in model.parameters()), tensors(inputs)[0].device)
        there = map_inputs(inputs, lambda x: x.to(home))
        with torch.no_grad(), put_back(model) as written, mode(model):
            found = outputs_of(ask(model, there, "model"), count_samples(inputs))
        return [] if written and mode is training_form else list(found)

    with chance.private_globals():
        wanted = _shapes(asked(student, train_mode))
        usual = {_shapes(asked(teacher, eval_mode)) for teacher in modules}
        if usual == {wanted}:
            return ""
        for teacher in modules:
            once, again = asked(teacher, training_form), asked(teacher, training_form)
            same = len(once) == len(again) and all(map(torch.equal, once, again))
            if _shapes(once) != wanted or not same:
                return ""
    return (
        f"the original answers as it does in training (outputs {wanted}), batch norms and dropout as in eval "
        f"mode, where it gives {' or '.join(sorted(usual))}"
    )


def check_alike(
    mine: Sequence[Tensor],
    theirs: Sequence[Tensor],
    in_eval_mode: Callable[[], Sequence[Tensor]] | None = None,
) -> None:
    """Refuse outputs of other shapes than the teacher's.

    Args:
        mine: The student's outputs.
        theirs: The teacher's, which is in eval mode.
        in_eval_mode: Gives the student's in eval mode, where ``mine`` are of training mode.

    Raises:
        RecoverError: naming the shapes.
    """
    ours, others = _shapes(mine), _shapes(theirs)
    if ours == others:
        return
    if in_eval_mode is not None and _shapes(in_eval_mode()) == others:
        raise RecoverError(
            f"the forward gives outputs of shape {ours} in training mode and {others} in eval mode, "
            "in which the teacher answers",
            remedy="Give both as modules whose forward returns the same in either mode, or use a loss on the "
            "scores or on features",
        )
    raise RecoverError(
        f"the teacher answers with shape {others}, the student with {ours}",
        remedy="Use a teacher with the same classes and inputs as the student",
    )


def _shapes(outputs: Sequence[Tensor]) -> str:
    return ", ".join(str(list(output.shape)) for output in outputs)


class AnswerCache:
    """Answers by the content of the sample: right in any order, useless but harmless when samples never
    repeat.

    Args:
        capacity: Most samples remembered.

    Attributes:
        hits: Batches answered without running the teacher.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.hits = capacity, 0
        self.known: dict[bytes, tuple[Tensor, ...]] = {}

    def answer(self, batch: Batch, run: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The remembered outputs when every sample is known; otherwise those of ``run``, remembered."""
        keys = self._keys(batch)
        rows = [self.known.get(key) for key in keys]
        known = [row for row in rows if row is not None]
        if len(known) == len(keys):
            self.hits += 1
            device = tensors(batch.inputs)[0].device
            return tuple(torch.stack(output).to(device) for output in zip(*known, strict=True))
        outputs = run()
        for key, answer in zip(keys, zip(*(output.cpu() for output in outputs), strict=True), strict=True):
            # the first answer stands: a resumed run must find what this one found
            if len(self.known) < self.capacity and key not in self.known:
                self.known[key] = tuple(row.clone() for row in answer)
        return outputs

    def _keys(self, batch: Batch) -> list[bytes]:
        digests = [hashlib.blake2b(digest_size=16) for _ in range(batch.size)]
        for part in tensors(batch.inputs):
            each = has_each(part, batch.size)
            samples = part if each else part.unsqueeze(0)
            shape = repr(tuple(samples.shape[1:])).encode()
            rows = samples.reshape(len(samples), -1).cpu().contiguous().view(torch.uint8).numpy()
            for index, digest in enumerate(digests):
                digest.update(shape)
                digest.update(rows[index if each else 0].tobytes())
        return [digest.digest() for digest in digests]

    def tensors(self) -> dict[str, Tensor]:
        """The cache as tensors, for a checkpoint; empty when it is."""
        if not self.known:
            return {}
        keys = torch.frombuffer(bytearray(b"".join(self.known)), dtype=torch.uint8).reshape(-1, 16)
        answers = self.known.values()
        shapes = [number for rows in answers for row in rows for number in (row.dim(), *row.shape)]
        return {
            "keys": keys,
            "outputs": torch.tensor([len(rows) for rows in answers]),
            "shapes": torch.tensor(shapes),
            "values": torch.cat([row.reshape(-1) for rows in answers for row in rows]),
        }

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave; answers that were kept in another form are asked for anew."""
        if "values" not in saved:
            return
        numbers = iter(saved["shapes"].tolist())
        shapes = [tuple(islice(numbers, rank)) for rank in numbers]
        parts = torch.split(saved["values"], [math.prod(shape) for shape in shapes])
        rows = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        for key, count in zip(saved["keys"], saved["outputs"].tolist(), strict=True):
            self.known[bytes(key.tolist())] = tuple(islice(rows, count))
