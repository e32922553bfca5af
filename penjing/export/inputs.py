"""Example inputs: one tensor, a tuple, or a dict of tensors — as call arguments, and as named arrays to feed
a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from penjing.errors import ExportError
from penjing.graph.inputs import bind_inputs
from penjing.naming import by_name, given_leaves, tensor_leaves

Feeds = dict[str, np.ndarray]


def as_call(example_inputs: Any, model: nn.Module | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that call the model on ``example_inputs``.

    A dict whose keys are not the forward's argument names is the one positional argument of ``model``.

    Raises:
        ExportError: if nothing was given, or something that holds no tensor.
    """
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, np.ndarray):
        return (torch.from_numpy(example_inputs),), {}
    if isinstance(example_inputs, Mapping) and example_inputs:
        named = {str(name): value for name, value in example_inputs.items()}
        return ((), named) if model is None else bind_inputs(model, named)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str) and example_inputs:
        return tuple(example_inputs), {}
    raise ExportError(
        f"example_inputs is {type(example_inputs).__name__!r}, which holds no tensor",
        remedy="Give a tensor, a non-empty tuple of tensors, or a dict from argument name to tensor",
    )


def tensors_of(example_inputs: Any) -> list[torch.Tensor | np.ndarray]:
    """All tensors and arrays of ``example_inputs``, in call order (nested lists and dicts are walked)."""
    args, kwargs = as_call(example_inputs)
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor | np.ndarray)]


def input_names(model: nn.Module, example_inputs: Any) -> list[str]:
    """One name a tensor: an ONNX file's own, ``input`` for a single one, the dict's keys, else the forward's
    argument names.

    An argument that is itself a list gives ``name_0``, ``name_1``…, a dict ``name_key``; the only argument,
    if it is a dict, its keys.
    """
    args, kwargs = as_call(example_inputs, model)
    if not kwargs and (own := names_in_file(model)):
        return list(own[0])
    if not kwargs and len(args) == 1 and isinstance(args[0], torch.Tensor):
        return ["input"]
    if not kwargs and len(args) == 1 and isinstance(args[0], Mapping):
        return [path for path, _ in tensor_leaves(args[0])]
    parameters = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    named = [(parameters[i] if i < len(parameters) else f"input_{i}", arg) for i, arg in enumerate(args)]
    names: list[str] = []
    for name, value in [*named, *kwargs.items()]:
        paths = [path for path, _ in tensor_leaves(value)]
        names += [name] if len(paths) == 1 else [f"{name}_{path}" for path in paths]
    return names


def names_in_file(model: nn.Module | None) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Names of the inputs and outputs of the ONNX file that a network was read from; None of any other."""
    from penjing.models.onnx_door import OnnxModel  # which reads this module

    return (model.input_names, model.output_names) if isinstance(model, OnnxModel) else None


def output_names(out: Any, taken: Iterable[str] = (), model: nn.Module | None = None) -> list[str]:
    """A name for each tensor a module gives.

    An ONNX file's own, ``output`` for one, dict keys for a dict, else ``output_0``…

    Args:
        out: What the module gave; what is no tensor gets no name.
        taken: Names of the inputs, which outputs must not share.
        model: The module.
    """
    found = [(path, leaf) for path, leaf in given_leaves(out) if isinstance(leaf, torch.Tensor)]
    if own := names_in_file(model):
        return [f"output_{name}" if name in set(taken) else name for name in own[1]]
    if len(found) == 1:
        return ["output"]
    named = [".".join(path) for path, _ in found]
    if any(name.replace(".", "").isdigit() or not name for name in named):
        return [f"output_{i}" for i in range(len(named))]
    inputs = set(taken)
    return [f"output_{name}" if name in inputs else name for name in named]


def identifier(name: str) -> str:
    """The name in TensorFlow's graphs and signatures, which allow letters, digits and ``_.\\/>-``."""
    return "".join(c if c.isalnum() or c in "_." else "_" for c in name).lstrip("_.") or "value"


def as_feeds(example_inputs: Any, names: Sequence[str]) -> Feeds:
    """Named arrays for a runner, from example inputs in call order.

    Raises:
        ExportError: if there are more or fewer tensors than names.
    """
    named = by_name(example_inputs, names)
    if named is not None:
        return {name: to_numpy(value) for name, value in named.items()}
    tensors = tensors_of(example_inputs)
    if len(tensors) != len(names):
        raise ExportError(
            f"{len(tensors)} input tensors were given to a file that takes {len(names)} ({', '.join(names)})",
            remedy="Give one tensor for each input of the file",
        )
    return {name: to_numpy(tensor) for name, tensor in zip(names, tensors, strict=True)}


def fitted(feeds: Feeds, kinds: Mapping[str, np.dtype[Any]]) -> Feeds:
    """The same numbers in the types that a network takes them in.

    Args:
        feeds: Named arrays.
        kinds: Those types by name; other inputs stay as they are.

    Raises:
        ExportError: for an input whose integers cannot hold the numbers.
    """
    return {name: _fitted(name, array, kinds.get(name, array.dtype)) for name, array in feeds.items()}


def _fitted(name: str, array: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    if array.dtype == kind or array.dtype.kind not in "biuf" or kind.kind not in "biuf":
        return array
    with np.errstate(invalid="ignore"):  # NaN as an integer, which differs from it
        made = array.astype(kind)
    if kind.kind != "f" and not np.array_equal(made, array):
        raise ExportError(
            f"the data holds {array.dtype} numbers ({array.min():.3g}…{array.max():.3g}) where the network "
            f"takes {kind}",
            layer=name,
            remedy="Give data as the network takes it: images as raw pixels, say",
        )
    return made


def to_numpy(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """The tensor as an array on the CPU; bfloat16, which NumPy lacks, becomes float32."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    value = value.resolve_neg()  # the imaginary part of a conjugate is a view with its sign to change
    return np.asarray(value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy())


def num_samples(feeds: Feeds) -> int:
    """Length of the first input that has one."""
    return next((array.shape[0] for array in feeds.values() if array.ndim), 1)


def between(feeds: Feeds, start: int, stop: int) -> Feeds:
    """Some of the samples; inputs that are not batched (see `resized`) as they are."""
    given = num_samples(feeds)
    return {
        name: array[start:stop] if array.ndim and array.shape[0] == given else array
        for name, array in feeds.items()
    }


def resized(feeds: Feeds, batch: int, *, seed: int = 0) -> Feeds:
    """``feeds`` with ``batch`` samples: real rows first, further ones are earlier rows with a little noise.

    Integer inputs (token ids, masks) repeat rows unchanged, since noise would leave their range. Inputs
    whose first dimension differs from the first input's are not batched and stay as they are.
    """
    rng = np.random.default_rng(seed)
    given = num_samples(feeds)
    out: Feeds = {}
    for name, array in feeds.items():
        if not array.ndim or array.shape[0] != given or given == batch:
            out[name] = array
            continue
        rows = array[np.arange(batch) % given]
        if np.issubdtype(array.dtype, np.floating) and batch > given:
            scale = 0.1 * float(array.std()) or 0.1
            rows = rows.copy()
            rows[given:] += (scale * rng.standard_normal(rows[given:].shape)).astype(array.dtype)
        out[name] = np.ascontiguousarray(rows)
    return out
