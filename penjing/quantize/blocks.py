"""Block-wise reconstruction: each block's int8 arithmetic is trained to give the block's fp32 output.

Li et al. 2021, "BRECQ": blocks are small enough that a few hundred unlabelled samples do not overfit them,
and large enough that the errors of their layers can cancel. What is trained are weights, steps and biases
alike, by straight-through gradients (Chen et al. 2024, "EfficientQAT", section 3.2), from what second-order
rounding found. Blocks go in order: each one reads what the int8 blocks before it give.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penjing.errors import QuantizeError
from penjing.events import Event, Listener
from penjing.graph.sections import Section, find_sections
from penjing.improve import improved
from penjing.models.onnx_door import OnnxModel, present
from penjing.models.onnx_ops import as_tensor
from penjing.models.onnx_ops.node import Value
from penjing.models.onnx_read import Body, Step
from penjing.quantize.feeds import Feed, Feeds
from penjing.quantize.job import Job
from penjing.quantize.student import QuantizedStudent, student_of, teach

_BATCH = 32
_MEMORY = 768 << 20
_LAYERS = 4
_RATES = {"weights": 0.025, "steps": 0.002, "biases": 0.002}
_PACES = (1.0, 0.2)
"""Factors of the rates: the next one where a block got no better, as with few samples it may overfit."""
_HELD = 4
"""Of so many batches one is held back, to judge what was learned on the others."""

Values = dict[str, Value]


@dataclass(frozen=True)
class BlockError:
    """Relative squared error of a block's output on samples held back, before and after.

    ``after`` is ``before`` where training did not help and was taken back.
    """

    block: Section
    before: float
    after: float


def find_blocks(model: OnnxModel, layers: Collection[str]) -> list[Section]:
    """The graph cut behind every few int8 layers.

    Args:
        model: The fp32 graph.
        layers: Its int8 layers, by output name.
    """
    made = [step.outputs for step in model.steps]
    read = [_read(step) for step in model.steps]
    return find_sections(made, read, model.output_names, layers, least=_LAYERS)


def _read(step: Step) -> set[str]:
    """Names that a node reads, in its own branches too."""
    names = {name for name in step.inputs if name}
    for value in step.attributes.values():
        if isinstance(value, Body):
            for inner in value.steps:
                names |= _read(inner)
            names |= set(value.outputs)
    return names


def train_blocks(job: Job, folder: Path) -> None:
    """Block-wise reconstruction of a calibrated job, which then writes what was learned."""
    prepared = folder / "prepared.onnx"
    student = student_of(job, prepared)
    errors = reconstruct_blocks(
        student,
        OnnxModel(prepared),
        job.feeds,
        steps=job.config.block_steps,
        seed=job.seed,
        listen=job.listen,
    )
    better = [error for error in errors if error.after < error.before]
    share = float(np.mean([error.after / error.before for error in better])) if better else 1.0
    job.notes.append(
        f"{len(better)} of {len(errors)} blocks were reconstructed: their squared error on samples held back "
        f"is {share:.2f} of what rounding left"
    )
    before = job.model
    teach(job, student)
    job.before = before  # each block was held to its fp32 output, so float layers keep their own weights


def reconstruct_blocks(
    student: QuantizedStudent,
    reference: OnnxModel,
    feeds: Feeds,
    *,
    steps: int,
    seed: int,
    listen: Listener,
) -> list[BlockError]:
    """Train the student block by block, in place; a block that does not get better stays as it was.

    Args:
        student: As `penjing.quantize.student.quantized_student` gives it.
        reference: The graph it was made of, in fp32.
        feeds: Unlabelled samples.
        steps: Training steps of each block.
        seed: Of the order of the batches.
        listen: Hears progress.
    """
    blocks = find_blocks(reference, student.frame.layers)
    batches = _batches(reference, blocks, feeds)
    given: list[Values] = [{} for _ in batches]
    wanted: list[Values] = [{} for _ in batches]
    errors = []
    for number, block in enumerate(blocks):
        wanted = [_run(reference, block, feed, x) for feed, x in zip(batches, wanted, strict=True)]
        errors.append(_train(student, block, batches, given, wanted, steps, seed))
        given = [_run(student, block, feed, x) for feed, x in zip(batches, given, strict=True)]
        done = {"block": number + 1.0, "blocks": float(len(blocks)), "error": errors[-1].after}
        listen(Event("quantize", "progress", metrics=done, message=f"block {number + 1} of {len(blocks)}"))
    return errors


@torch.no_grad()
def _batches(reference: OnnxModel, blocks: Sequence[Section], feeds: Feeds) -> list[Values]:
    """Feeds of equal size, as many as keep three tensors between blocks within memory.

    Raises:
        QuantizeError: where some cannot be held back.
    """
    read: list[Feed] = []
    most, size, count = feeds.samples, 0, 0
    for feed, _ in feeds.batches(_BATCH):
        if not read:
            size = feeds.count(feed)
            env = reference.after(reference.steps, {name: torch.from_numpy(x) for name, x in feed.items()})
            largest = max(as_tensor(present(env, end)).nbytes for block in blocks for end in block.ends)
            most = max(_MEMORY // (3 * largest), 2) * size
        elif not _goes_on(feed, read[0], feeds.each):
            break
        read.append(feed)
        count += feeds.count(feed)
        if count >= most:
            break
    whole = {
        name: torch.from_numpy(np.concatenate([feed[name] for feed in read]) if name in feeds.each else x)
        for name, x in read[0].items()
    }
    if count < 2 * size and not feeds.fixed:
        size = max(count // _HELD, 1) if count >= _HELD - 1 else count
    found: list[Values] = [
        feeds.taken(whole, slice(at, at + size)) for at in range(0, count - size + 1, size)
    ]
    if len(found) < 2:
        raise QuantizeError(
            "rounding 'blocks' holds samples back to judge by, and there are too few",
            remedy=f"Calibrate with at least {_HELD} samples, or as many batches where the batch is fixed",
        )
    return found


def _goes_on(feed: Feed, first: Feed, each: Set[str]) -> bool:
    """Whether samples can stand behind those of the first feed, with what belongs to all of them."""
    return all(
        x.shape[1:] == first[name].shape[1:] if name in each else np.array_equal(x, first[name])
        for name, x in feed.items()
    )


def _run(model: OnnxModel, block: Section, feed: Values, x: Values) -> Values:
    with torch.no_grad():
        return _ends(model, block, feed, x)


def _ends(model: OnnxModel, block: Section, feed: Values, x: Values) -> Values:
    """What leaves the block."""
    steps = model.steps
    env = model.after([steps[index] for index in block.steps], {**feed, **x})
    return {name: present(env, name) for name in block.ends}


def _train(
    student: QuantizedStudent,
    block: Section,
    feeds: Sequence[Values],
    given: Sequence[Values],
    wanted: Sequence[Values],
    steps: int,
    seed: int,
) -> BlockError:
    held = list(range(0, len(feeds), _HELD))
    used = [index for index in range(len(feeds)) if index not in held]
    groups = list(_groups(student, block))
    power = {
        name: sum(float(as_tensor(wanted[index][name]).float().square().mean()) for index in used) / len(used)
        for name in block.ends
    }

    def loss(index: int) -> Tensor:
        found = _ends(student, block, feeds[index], given[index])
        parts = [
            (as_tensor(found[name]) - as_tensor(wanted[index][name])).square().mean()
            / max(power[name], 1e-20)
            for name in block.ends
            if as_tensor(wanted[index][name]).is_floating_point()
        ]
        return torch.stack(parts).mean()

    def judged() -> float:
        with torch.no_grad():
            return float(torch.stack([loss(index) for index in held]).mean())

    before = judged()
    draw = np.random.default_rng(seed)
    for pace in _PACES:
        paced = [{**group, "lr": pace * group["lr"]} for group in groups]
        after = improved(
            student.parameters(), paced, steps, lambda: loss(int(draw.choice(used))), judged, before
        )
        if after < before:
            return BlockError(block, before, after)
    return BlockError(block, before, before)


def _groups(student: QuantizedStudent, block: Section) -> Iterator[dict[str, Any]]:
    """Parameters with their rates: a share of the layer's own step, and of each step's own size."""
    for out in block.layers:
        weight, bias, step_O = student.layer_parameters(out)
        size = float(step_O.detach().abs().mean())
        yield {"params": [weight], "lr": _RATES["weights"] * size}
        yield {"params": [step_O], "lr": _RATES["steps"] * size}
        if bias is not None:
            level = float(bias.detach().abs().mean())
            if level > 0:
                yield {"params": [bias], "lr": _RATES["biases"] * level}
    made = {name for index in block.steps for name in student.steps[index].outputs}
    for step in student.rounded_tensors(made).values():
        yield {"params": [step], "lr": _RATES["steps"] * float(step.detach())}
