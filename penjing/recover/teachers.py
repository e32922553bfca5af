"""The teachers' answers to a batch: run, remembered or brought along by the data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from penjing.errors import RecoverError
from penjing.recover.batches import Batch, ask, logits_of, tensors
from penjing.recover.features import FeatureSpec, Taps, align

Teacher = nn.Module | Callable[[Any], Tensor]


class Teachers:
    """Original networks that answer without gradient, in eval mode, for the time of a ``with`` block.

    Their modules are not changed: train/eval flags and devices are given back.

    Args:
        teachers: Modules, or functions from inputs to logits.
        specs: Where features are taken, in the first teacher, and which channels of them are asked for.
        cache: Most samples whose logits are remembered (one teacher only).
    """

    def __init__(
        self, teachers: Sequence[Teacher], specs: Sequence[FeatureSpec] = (), cache: int = 0
    ) -> None:
        self.teachers = tuple(teachers)
        self.cache = LogitCache(cache) if cache and len(self.teachers) == 1 and not specs else None
        self._specs = specs
        self._taps: Taps | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for teacher in self.teachers:
            if isinstance(teacher, nn.Module):
                self._stack.callback(_restore_modes, [(m, m.training) for m in teacher.modules()])
                teacher.eval()
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
    def answer(self, batch: Batch) -> tuple[list[Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """Logits ``[N, K]`` of each teacher, and features by key as (kept channels, all channels).

        Logits that the data carries stand for the teachers' own.
        """
        if batch.teacher_logits is not None and not self._specs:
            return [batch.teacher_logits], {}
        if self.cache is not None:
            return [self.cache.answer(batch, lambda: self._run(self.teachers[0], batch))], {}
        logits = [self._run(teacher, batch) for teacher in self.teachers]
        if batch.teacher_logits is not None:
            logits = [batch.teacher_logits]
        if self._taps is None:
            return logits, {}
        full = self._taps.features
        return logits, {spec.key: (align(spec, full[spec.key]), full[spec.key]) for spec in self._specs}

    def _run(self, teacher: Teacher, batch: Batch) -> Tensor:
        return logits_of(ask(teacher, batch.inputs, "teacher", RecoverError), RecoverError).float()


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


class LogitCache:
    """Logits by the content of the sample: right in any order, useless but harmless when samples never
    repeat.

    Args:
        capacity: Most samples remembered.

    Attributes:
        hits: Batches answered without running the teacher.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.hits = capacity, 0
        self.known: dict[bytes, Tensor] = {}

    def answer(self, batch: Batch, run: Callable[[], Tensor]) -> Tensor:
        """The remembered logits when every sample is known; otherwise those of ``run``, remembered."""
        keys = self._keys(batch)
        rows = [self.known.get(key) for key in keys]
        known = [row for row in rows if row is not None]
        if len(known) == len(keys):
            self.hits += 1
            return torch.stack(known).to(tensors(batch.inputs)[0].device)
        logits = run()
        for key, row in zip(keys, logits.cpu(), strict=True):
            # the first answer stands: a resumed run must find what this one found
            if len(self.known) < self.capacity and key not in self.known:
                self.known[key] = row.clone()
        return logits

    def _keys(self, batch: Batch) -> list[bytes]:
        parts = [part.cpu().contiguous().numpy() for part in tensors(batch.inputs)]
        digests = [hashlib.blake2b(digest_size=16) for _ in range(batch.size)]
        for part in parts:
            for digest, sample in zip(digests, part, strict=True):
                digest.update(sample.tobytes())
        return [digest.digest() for digest in digests]

    def tensors(self) -> dict[str, Tensor]:
        """The cache as tensors, for a checkpoint; empty when it is."""
        if not self.known:
            return {}
        keys = torch.frombuffer(bytearray(b"".join(self.known)), dtype=torch.uint8).reshape(-1, 16)
        return {"keys": keys, "logits": torch.stack(list(self.known.values()))}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        if saved:
            keys = [bytes(row.tolist()) for row in saved["keys"]]
            self.known = dict(zip(keys, saved["logits"], strict=True))
