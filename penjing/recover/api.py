"""`train` and `recover`: the two ways into the one loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from penjing.errors import at_stage
from penjing.events import Listener, silent
from penjing.files import check_folder
from penjing.measure.metric import Metric
from penjing.recover.config import RecoverConfig
from penjing.recover.job import Job
from penjing.recover.loop import Loop
from penjing.recover.result import RecoverResult
from penjing.recover.teachers import Teacher


@at_stage("train")
def train(
    model: nn.Module,
    data: Iterable[Any],
    config: RecoverConfig | Mapping[str, Any] | None = None,
    *,
    val: Iterable[Any] | None = None,
    checkpoint: Path | str | None = None,
    seed: int = 0,
    listen: Listener = silent,
) -> RecoverResult:
    """Train a copy of ``model`` on labelled data.

    Args:
        model: Any module from inputs to class scores ``[N, K]``. It is not changed.
        data: A re-iterable of batches; ``set_epoch(epoch)`` is called before each pass where there is one,
            also on a loader's samplers.
        config: Options, also as a dict; the defaults of `RecoverConfig` otherwise.
        val: Data with targets for validation, early stopping and ``keep="best"``.
        checkpoint: Folder written after every epoch. If it holds a checkpoint the run goes on from it, and
            ends as it would have without the interruption, bit for bit (unless ``max_seconds`` ends it).
        seed: Fixes dropout, mixing and loaders that draw from torch's global generator.
        listen: Hears the events.

    Raises:
        DataError: empty data or such as can be iterated only once, NaN, labels outside the classes, a batch
            of unknown form.
        RecoverError: a loss or gradient that is not finite (with step and layer), a checkpoint of another
            run.
        RunError: a checkpoint folder that cannot be written.
    """
    job = Job(
        "train", model, (), data, RecoverConfig.of(config), val, None, _folder(checkpoint), seed, listen
    )
    return Loop(job).run()


@at_stage("recover")
def recover(
    student: nn.Module,
    teacher: Teacher | Sequence[Teacher] | None,
    data: Iterable[Any],
    config: RecoverConfig | Mapping[str, Any] | None = None,
    *,
    val: Iterable[Any] | None = None,
    plan: Any = None,
    metric: Metric | None = None,
    checkpoint: Path | str | None = None,
    seed: int = 0,
    listen: Listener = silent,
) -> RecoverResult:
    """Train a copy of ``student`` to answer as ``teacher`` does.

    Args:
        student: The network to recover. It is not changed.
        teacher: The original network; several, whose losses are averaged; functions from inputs to logits;
            or None when the batches carry ``teacher_logits``.
        data: A re-iterable of batches, as for `train`; labels are needed only by losses that use them.
        config: Options, also as a dict; the defaults of `RecoverConfig` otherwise.
        val: As for `train`.
        metric: What validation goes by instead of accuracy: ``metric(outputs, targets)`` on all of ``val``,
            or an object with ``update``, ``compute`` and ``reset``; higher is better. Without it a network
            whose targets are not classes, or are not there, is judged by how well it answers as the
            original does (R²).
        plan: The plan the student was pruned with; lines its features up with the teacher's.
        checkpoint: As for `train`.
        seed: As for `train`.
        listen: Hears the events.

    Raises:
        DataError: As for `train`.
        RecoverError: As for `train`; also a teacher of another output shape, features that cannot be
            lined up, a loss that depends on nothing that is trained, and another process that has ended.
        RunError: As for `train`.
    """
    if teacher is None:
        teachers: tuple[Teacher, ...] = ()
    else:
        teachers = tuple(teacher) if isinstance(teacher, Sequence) else (teacher,)
    config = RecoverConfig.of(config)
    folder = _folder(checkpoint)
    job = Job("recover", student, teachers, data, config, val, plan, folder, seed, listen, metric)
    return Loop(job).run()


def _folder(checkpoint: Path | str | None) -> Path | None:
    """The checkpoint's folder, which can be written."""
    if checkpoint is None:
        return None
    check_folder(checkpoint)
    return Path(checkpoint)
