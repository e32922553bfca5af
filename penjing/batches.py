"""What one batch of data is: taken apart, checked, moved, and given to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.class_order import class_by_class, is_open, plain_labels
from penjing.errors import DataError, PenjingError

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""A tensor, or a tuple or dict of tensors, which may be lists, tuples and dicts of tensors themselves."""

_TARGET_KEYS = ("target", "targets", "label", "labels")
_TEACHER_KEY = "teacher_logits"

IGNORED = -100
"""The label of samples and positions that do not count, unless another is named (torch's own choice)."""


@dataclass(frozen=True)
class Batch:
    """One batch, taken apart.

    Attributes:
        inputs: What the model is called with: a tensor, a tuple or a dict of tensors.
        target: Class indices ``y_N`` (integers), of every position for dense outputs, or class probabilities
            ``[N, K]``; anything else for networks that do not classify; None for unlabelled data.
        teacher_logits: The teacher's answers ``[N, K]`` when the data carries them.
    """

    inputs: Inputs
    target: Any = None
    teacher_logits: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return count_samples(self.inputs)


def tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of the inputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def map_inputs(inputs: Inputs, change: Any) -> Inputs:
    """The inputs with ``change`` applied to each tensor."""
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, inputs)  # type: ignore[no-any-return]


def count_samples(inputs: Any) -> int:
    """Number of samples: the length of the first tensor (in lists and dicts, too) that has one.

    Raises:
        DataError: where there is no tensor.
    """
    found = next((len(leaf) for leaf in pytree.tree_leaves(inputs) if _has_length(leaf)), None)
    if found is None:
        first_tensor(inputs)  # numbers alone are one sample
        return 1
    return found


def has_each(value: Any, count: int) -> bool:
    """Whether this is a tensor with an entry for each of so many samples; others belong to all of them."""
    return _has_length(value) and len(value) == count


def choose_samples(inputs: Any, take: Callable[[Tensor], Tensor]) -> Any:
    """The inputs with ``take``, which chooses samples, applied to each tensor that has an entry for each.

    What is of another length than the first tensor (the adjacency of a graph, a number) belongs to all
    samples and stays, as it does where networks are traced and exported.
    """
    count = count_samples(inputs)

    return pytree.tree_map(lambda leaf: take(leaf) if has_each(leaf, count) else leaf, inputs)


def between(inputs: Any, start: int, stop: int | None = None) -> Any:
    """The inputs of some samples on end."""
    return choose_samples(inputs, lambda x: x[start:stop])


def join_samples(batches: Sequence[Any]) -> Any:
    """One batch of several; what belongs to all samples is the first one's."""
    counts = [count_samples(inputs) for inputs in batches]

    def joined(*parts: Any) -> Any:
        each = all(map(has_each, parts, counts))
        return torch.cat(parts) if each else parts[0]

    return pytree.tree_map(joined, *batches)


def _has_length(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def limited(batches: Sequence[Inputs], samples: int) -> list[Inputs]:
    """The first ``samples`` samples of some batches of inputs."""
    taken: list[Inputs] = []
    for inputs in batches:
        if samples > 0:
            taken.append(between(inputs, 0, samples))
            samples -= count_samples(inputs)
    return taken


def first_samples(
    data: Iterable[Any],
    samples: int,
    names: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> list[Inputs]:
    """The inputs of the first ``samples`` samples of the data, batch by batch.

    No more batches are read, but for one where it is to be told whether the data goes on.

    Args:
        data: Batches.
        samples: How many.
        names: Names of the network's inputs, where they are known; see `take_apart`.
        tell: Hears `class_by_class`.

    Raises:
        DataError: NaN in them, or labels of another number.
    """
    taken: list[Inputs] = []
    labels: list[int] = []
    seen = 0
    for index, item in enumerate(data):
        batch = unpack(item, names)
        if seen < samples:
            check(batch, index)
            taken += limited([batch.inputs], samples - seen)
        labels += plain_labels(batch.target)
        seen += batch.size
        if seen >= samples and (tell is None or not is_open(labels, samples)):
            break
    if tell is not None and (said := class_by_class(labels, samples)):
        tell(said)
    return taken


def take_apart(item: Any, names: Sequence[str] = ()) -> tuple[Any, Any, Any]:
    """Inputs, target and teacher's logits of one item of data; its values are not looked at.

    An item is ``inputs``, ``(inputs, target)``, ``(inputs, target, teacher_logits)`` or a mapping, where the
    keys ``target(s)``/``label(s)`` and ``teacher_logits`` are taken out and the rest are inputs by name
    (``inputs`` alone: as they are). Longer tuples are inputs.

    Args:
        item: What the data gave.
        names: Names of the network's inputs, where they are known (`penjing.graph.inputs.required_inputs`):
            these are never a target, and as many tensors as there are inputs are the inputs.
    """
    if isinstance(item, Mapping):
        rest = dict(item)
        target = next((rest.pop(key) for key in _TARGET_KEYS if key in rest and key not in names), None)
        logits = None if _TEACHER_KEY in names else rest.pop(_TEACHER_KEY, None)
        return (rest["inputs"] if rest.keys() == {"inputs"} else rest), target, logits
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 3:
        is_whole = _arrays(item[0]) == len(names) or all(part is None for part in item[1:])
        is_pair = not isinstance(item[0], (Tensor, np.ndarray)) and is_whole
        if is_pair or not _arrays(item) == len(names) > 1:
            inputs, target, logits = (*item, None, None)[:3]
            return inputs, target, logits
    return item, None, None


def _arrays(value: Any) -> int:
    """How many tensors and arrays a value holds."""
    return sum(isinstance(leaf, (Tensor, np.ndarray)) for leaf in pytree.tree_leaves(value))


def unpack(item: Any, names: Sequence[str] = ()) -> Batch:
    """Take apart one item of a data iterable that holds tensors; see `take_apart`.

    Raises:
        DataError: for anything else.
    """
    if not isinstance(item, (Tensor, Mapping, tuple, list)) or (not isinstance(item, Tensor) and not item):
        raise DataError(
            f"a batch is a {type(item).__name__}",
            remedy="Give batches as inputs, (inputs, target) or a dict of tensors",
        )
    inputs, target, logits = take_apart(item, names)
    return Batch(as_inputs(inputs), torch.as_tensor(target) if _is_plain(target) else target, logits)


def first_tensor(value: Any) -> Tensor:
    """The first tensor in a batch, or in what a network gives.

    Raises:
        DataError: where there is none.
    """
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            return leaf
    raise DataError(
        f"{type(value).__name__} holds no tensor",
        remedy="Give batches as a tensor, (inputs, target), or a dict of tensors",
    )


def _is_plain(target: Any) -> bool:
    """Whether these are numbers in another wrapping."""
    if isinstance(target, np.ndarray):
        return target.dtype.kind in "iufb"
    return isinstance(target, (list, tuple)) and all(type(entry) in (int, float) for entry in target)


def as_inputs(value: Any) -> Inputs:
    """What a model is called with, of any kind of mapping or sequence of tensors.

    Raises:
        DataError: for anything else.
    """
    if isinstance(value, Tensor):
        return value
    held: Inputs = ()
    if isinstance(value, Mapping):
        held = dict(value)
    elif isinstance(value, (tuple, list)):
        held = tuple(value)
    leaves = pytree.tree_leaves(held)
    if leaves and all(isinstance(leaf, Tensor) for leaf in leaves):
        return held
    raise DataError(
        f"the inputs of a batch are a {type(value).__name__}",
        remedy="Give a tensor, or a tuple or dict of tensors",
    )


def check(
    batch: Batch, index: int, num_classes: int | None = None, *, of: str = "", ignored: int = IGNORED
) -> None:
    """Refuse a batch that would poison the training.

    Args:
        batch: What the data gave.
        index: Its number.
        num_classes: Classes of the outputs; None does not look at the labels.
        of: Which data it is from, for the error: ``"validation"``; "" is what is trained on.
        ignored: The label of what does not count.

    Raises:
        DataError: no samples, NaN or infinity in the inputs, a target of another length or outside
            ``0 … num_classes - 1``.
    """
    where = f"{of} batch {index}".lstrip()
    if batch.size == 0:
        raise DataError("the batch has no samples", layer=where, remedy="Remove empty batches from the data")
    for part in tensors(batch.inputs):
        if part.is_floating_point() and not bool(torch.isfinite(part.sum(dtype=torch.float64))):
            each = has_each(part, batch.size)
            bad = f"sample {_first_bad(part)}" if each else "what belongs to all samples"
            raise DataError(
                f"{bad} of the batch contains NaN or infinity",
                layer=where,
                remedy="Clean the data or its normalisation (a zero standard deviation does this)",
            )
    if not isinstance(batch.target, Tensor) or batch.target.is_floating_point() or batch.target.numel() == 0:
        return
    count = len(batch.target) if batch.target.dim() else 1
    if batch.target.dim() == 0 or count != batch.size:
        raise DataError(
            f"{batch.size} inputs come with {count} targets",
            layer=where,
            remedy="Give one target per input",
        )
    if num_classes is not None:
        check_labels(batch.target, num_classes, where, ignored)


def _first_bad(part: Tensor) -> int:
    return int((~torch.isfinite(part)).reshape(len(part), -1).any(1).nonzero()[0])


def check_labels(target: Tensor, num_classes: int, place: str, ignored: int = IGNORED) -> None:
    """Refuse labels outside ``0 … num_classes - 1`` that are not ``ignored``.

    Raises:
        DataError: naming the label, and the ``place`` it is in.
    """
    target = target[target != ignored]
    if target.numel() == 0:
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"label {low if low < 0 else high} is outside the model's classes 0 … {num_classes - 1}",
            layer=place,
            remedy="Correct the labels, build the model with as many classes as the data has, or name the "
            "label of what is not to count: ignore_index",
        )


def move(batch: Batch, device: torch.device, channels_last: bool = False) -> Batch:
    """The batch on ``device``; images in channels-last memory order when asked."""

    def place(x: Tensor) -> Tensor:
        x = x.to(device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x

    return Batch(
        map_inputs(batch.inputs, place),
        batch.target.to(device, non_blocking=True) if isinstance(batch.target, Tensor) else batch.target,
        None if batch.teacher_logits is None else batch.teacher_logits.to(device, non_blocking=True),
    )


def share(batch: Batch, rank: int, world: int) -> Batch | None:
    """The part of the batch that process ``rank`` of ``world`` works on; None when there is not one sample
    for each.

    The first ``world · (n // world)`` samples are dealt out in turn, so all parts have the same size and
    the mean of the parts' gradients is the gradient of the whole.
    """
    if world == 1:
        return batch
    even = batch.size // world * world
    if even == 0:
        return None

    def part(x: Tensor) -> Tensor:
        return x[rank:even:world]

    return Batch(
        choose_samples(batch.inputs, part),
        None if batch.target is None else part(batch.target),
        None if batch.teacher_logits is None else part(batch.teacher_logits),
    )


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """``model(x)``, ``model(*tuple)`` or ``model(**dict)``; a dict of other keys than arguments is one.

    The inputs stay as they are, also where the forward writes into them.
    """
    from penjing.graph.remembered import own_copies

    inputs = own_copies(inputs)
    if isinstance(inputs, dict):
        from penjing.graph.inputs import bind_inputs

        args, kwargs = bind_inputs(model, inputs)
        return model(*args, **kwargs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def ask(model: Callable[..., Any], inputs: Any, who: str, error: type[PenjingError] = DataError) -> Any:
    """`call_model`, with an error of ours where the network does not take the inputs.

    Args:
        model: The network; a function is given the inputs as they are.
        inputs: The inputs of a batch.
        who: ``"model"`` or ``"teacher"``: what the error calls it.
        error: Its class.

    Raises:
        PenjingError: of class ``error``, naming the shapes.
    """
    try:
        return call_model(model, inputs) if isinstance(model, nn.Module) else model(inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as failure:
        leaves = pytree.tree_leaves(inputs)
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))
        said = next(iter(str(failure).splitlines()), type(failure).__name__)
        remedy = f"Check the size, channels and layout of the images, and that the {who} runs on one batch"
        if "more than 1 value per channel" in said:
            remedy = "Its batch norms need two samples or more: give the loader drop_last=True"
        if "required positional argument" in said:
            remedy = "Of a batch (a, b) the second is the target; of several inputs make it ((a, b), target)"
            remedy += " or a dict by their names"
        raise error(f"the {who} does not take inputs of shape {shapes} ({said})", remedy=remedy) from failure


def logits_of(output: Any, target: Any = None) -> Tensor:
    """The scores in a model's output, as ``[N, K]`` (positions of dense outputs become samples).

    Which dimension the classes are is seen by the targets, which have all others. Without such targets it is
    the last one of ``[N, T, K]``, as for tokens, and the second of larger outputs, as for pixels.

    Raises:
        DataError: when the output holds no tensor of scores.
    """
    scores = _scores(output, DataError)
    if scores.dim() == 1:
        return scores.unsqueeze(1)
    if scores.dim() == 2:
        return scores
    second, last = (scores.shape[0], *scores.shape[2:]), scores.shape[:-1]
    shape = target.shape if isinstance(target, Tensor) else None
    tokens = shape == last if shape in (second, last) and second != last else scores.dim() == 3
    return (scores if tokens else scores.movedim(1, -1)).flatten(0, -2)


def outputs_of(output: Any, samples: int, error: type[PenjingError] = DataError) -> tuple[Tensor, ...]:
    """Every output with one entry for each sample, the scores first.

    Raises:
        PenjingError: of class ``error``, when there is no tensor of scores.
    """
    scores = _scores(output, error)
    others = (
        leaf
        for leaf in pytree.tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf is not scores
    )
    return (scores, *(leaf for leaf in others if has_each(leaf, samples)))


def classifies(target: Any, logits_NK: Tensor) -> bool:
    """Whether the outputs are scores of the classes that the targets name; without targets, whether they may
    be.
    """
    return logits_NK.shape[1] > 1 if target is None else labels_of(target, logits_NK) is not None


def labels_of(target: Any, logits_NK: Tensor) -> Tensor | None:
    """The class of each sample or position (int64 ``[N]``), of probabilities the likeliest; None where the
    targets are no classes of these outputs, of which there are two or more.
    """
    if not isinstance(target, Tensor) or logits_NK.shape[1] < 2:
        return None
    if target.is_floating_point():
        if target.shape != logits_NK.shape or bool((target < 0).any()):
            return None
        sums = target.double().sum(1)
        return target.argmax(1) if torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else None
    return target.reshape(-1).long() if target.numel() == len(logits_NK) else None


def counts_of(target: Tensor, labels_N: Tensor, ignored: int) -> Tensor:
    """Which of the labels that `labels_of` found count: those of probabilities all do."""
    return (labels_N != ignored) | target.is_floating_point()


def _scores(output: Any, error: type[PenjingError]) -> Tensor:
    while not isinstance(output, Tensor):  # the first one, however deep it lies
        if hasattr(output, "logits"):
            output = output.logits
        elif isinstance(output, Mapping) and output:
            output = output["logits"] if "logits" in output else next(iter(output.values()))
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
        else:
            break
    if not isinstance(output, Tensor) or output.dim() < 1:
        raise error(
            f"the model's output is a {type(output).__name__}, not a tensor with an entry for each sample",
            remedy="Wrap the model so that its first output is one: scores [N, classes] or values [N, …]",
        )
    return output


def check_batches(data: Any, name: str = "data") -> None:
    """Refuse what gives no batches: a path, one batch, a set of single samples, a bundle of sets.

    Raises:
        DataError: naming the data.
    """
    from penjing.data.split import Split  # which reads batches itself

    if isinstance(data, Iterable) and not isinstance(data, (Split, str, Mapping)):
        return
    raise DataError(
        f"{name} is a {type(data).__name__}, not batches",
        remedy="Give a list of batches, a DataLoader (of a Dataset), or pj.Loader(split, batch_size) (of a "
        "Split of pj.open_data)",
    )


def check_reiterable(data: Any, name: str = "data") -> None:
    """Refuse what cannot be iterated again and again.

    Raises:
        DataError: naming the data.
    """
    check_batches(data, name)
    if isinstance(data, Iterator):  # making one to see would start a loader's workers, and draw
        raise used_up(f"{name} is an iterator: {name} can be iterated only once and is used up after a pass")


def count_batches(data: Iterable[Any]) -> int:
    """Number of batches in one pass, by ``len`` or, where there is none, by going through the data once.

    Raises:
        DataError: when the data is empty, or is an iterator that can only be gone through once.
    """
    check_reiterable(data)
    try:
        count = len(data)  # type: ignore[arg-type]
    except TypeError:
        count = sum(1 for _ in data)
        if count and next(iter(data), None) is None:
            raise used_up("the data gives no batch in a second pass") from None
    if count == 0:
        raise DataError(
            "the data has no batches", remedy="Check the path, and drop_last with a large batch size"
        )
    return count


def used_up(cause: str) -> DataError:
    """The error for data that cannot be iterated again and again."""
    return DataError(cause, remedy="Give a DataLoader or a list of batches instead of a generator")
