"""One way to ask for outputs: of a module, an ONNX Runtime session, an exported file's runner, a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penjing.batches import as_inputs, call_model, map_inputs, take_apart
from penjing.errors import MeasureError
from penjing.graph.inputs import required_inputs
from penjing.graph.remembered import put_back
from penjing.modes import eval_mode
from penjing.naming import by_name, leaves, lone

Predict = Callable[[Any], NDArray[Any]]


@contextmanager
def as_predict(model: Any) -> Iterator[Predict]:
    """A function from a batch's inputs to a NumPy array of the first output.

    A module is put in eval mode, without gradients, for the duration. A session (``get_inputs``,
    ``run(None, feeds)``) and a runner (``inputs``, ``run(feeds)``) are fed by input name, or by position
    where the batch has no names.

    Raises:
        MeasureError: if ``model`` is none of these.
    """
    if isinstance(model, nn.Module):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with put_back(model), eval_mode(model), torch.inference_mode():
            yield lambda inputs: _first(_call(model, inputs, device))
    elif hasattr(model, "get_inputs"):
        names = [entry.name for entry in model.get_inputs()]
        yield lambda inputs: _first(model.run(None, feeds_of(inputs, names)))
    elif hasattr(model, "run") and hasattr(model, "inputs"):
        names = [entry.name for entry in model.inputs]
        yield lambda inputs: _first(model.run(feeds_of(inputs, names)))
    elif callable(model):
        yield lambda inputs: _first(model(inputs))
    else:
        raise MeasureError(
            f"cannot ask a {type(model).__name__} for predictions",
            remedy="Give an nn.Module, an ONNX Runtime session, an exported file's runner or a function",
        )


def feeds_of(inputs: Any, names: list[str]) -> dict[str, NDArray[Any]]:
    """A batch's inputs as NumPy arrays under the file's names for them; see `by_name`."""
    named = by_name(inputs, names)
    if named is None:
        given = list(leaves(inputs))
        told = ", ".join(path for path, _ in given) if isinstance(lone(inputs), Mapping) else ""
        raise MeasureError(
            f"a batch has {len(given)} inputs{f' ({told})' if told else ''} and the file takes {len(names)} "
            f"({', '.join(names)})",
            remedy="Give batches with the file's inputs",
        )
    return {name: _array(value) for name, value in named.items()}


def names_of(model: Any) -> Sequence[str]:
    """Names of the inputs of what `as_predict` takes; () where they are not known."""
    if hasattr(model, "get_inputs"):
        return [entry.name for entry in model.get_inputs()]
    if hasattr(model, "run") and hasattr(model, "inputs"):
        return [entry.name for entry in model.inputs]
    return required_inputs(model)


def labelled(loader: Iterable[Any], names: Sequence[str] = ()) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Batches of inputs with their targets; see `take_apart`, also for the ``names``.

    Raises:
        MeasureError: for a batch without targets.
    """
    for batch in loader:
        inputs, target, _ = take_apart(batch, names)
        if target is None:
            raise MeasureError("the data has no labels", remedy="Give batches of (inputs, labels)")
        yield inputs, _array(target)


def are_classes(targets: NDArray[Any]) -> bool:
    """Whether targets are one class for each sample."""
    return targets.ndim == 1 and targets.dtype.kind in "iu"


def _call(model: nn.Module, inputs: Any, device: torch.device) -> Any:
    return call_model(model, map_inputs(as_inputs(inputs), lambda x: x.to(device)))


def _first(outputs: Any) -> NDArray[Any]:
    if isinstance(outputs, Mapping):
        outputs = next(iter(outputs.values()))
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0]
    return _array(outputs)


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value.resolve_neg()).numpy()
    array: NDArray[Any] = np.asarray(value)
    return array
