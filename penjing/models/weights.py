"""Weights from a safetensors file into a model, strictly: differences are named with their nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import ArtifactError
from penjing.export.program_tensors import read_safetensors

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_SHOWN = 5


def load_weights(model: nn.Module, path: Path | str, *, trust: bool = False) -> None:
    """Load ``path`` into ``model`` in place.

    Args:
        model: The network.
        path: A ``.safetensors`` file holding exactly the model's state; tied weights may be given once, and
            one prefix may stand before all names, as wrappers write it (``module.``, ``_orig_mod.``).
        trust: Also accept a pickled file (``.pt``, ``.pth``), which can run any code when it is opened.

    Raises:
        ArtifactError: when the file is unreadable, pickled, or differs from the model in names or shapes, or
            holds whole numbers where the model has fractions.
    """
    path = Path(path)
    state = _unpickle(path, trust) if path.suffix.lower() in _PICKLED else read_safetensors(path)
    load_state(model, state, path)


def load_state(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """The same with what was read of ``path``."""
    expected = model.state_dict(keep_vars=True)
    state = _unwrapped(state, expected)
    tied: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        tied.setdefault(id(tensor), []).append(name)
    for names in tied.values():
        held = next((name for name in names if name in state), None)
        if held is not None:
            state.update({name: state[held] for name in names if name not in state})
    # files of other frameworks, and old ones, do not count batches; nothing but a momentum of None reads it
    uncounted = {name: t for name, t in expected.items() if name.endswith("num_batches_tracked")}
    state = {**{name: t.detach() for name, t in uncounted.items()}, **state}

    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        problems = [_listed("lacks", missing, unexpected), _listed("has the unknown", unexpected, expected)]
        raise ArtifactError(
            f"{path} does not fit {type(model).__name__}: it "
            + " and ".join(part for part in problems if part),
            layer=(missing or unexpected)[0],
            remedy="Give the weights of this very model, with its options (e.g. the number of classes)",
        )
    for name, tensor in expected.items():
        if tensor.is_floating_point() and not state[name].is_floating_point():
            raise ArtifactError(
                f"{name!r} is {_dtype(state[name])} in {path}, {_dtype(tensor)} in the model",
                layer=name,
                remedy="Give the float weights: numbers on an int8 grid mean nothing without their scales",
            )
        if tensor.shape != state[name].shape:
            raise ArtifactError(
                f"{name!r} is {list(state[name].shape)} in {path}, {list(tensor.shape)} in the model",
                layer=name,
                remedy="Build the model with the options it was trained with (e.g. the number of classes)",
            )
    model.load_state_dict(state)


def _unwrapped(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as it was before DataParallel, torch.compile, Lightning, … put a prefix before every name."""
    found = state
    while found and expected.keys().isdisjoint(found):
        parts = {name: name.partition(".") for name in found}
        if len({head for head, _, _ in parts.values()}) > 1 or not all(rest for _, _, rest in parts.values()):
            return state  # of another model: told by the names as they stand
        found = {parts[name][2]: tensor for name, tensor in found.items()}
    return found


def opened(read: Callable[[], Any], path: Path) -> Any:
    """What ``read`` gives of a file that torch unpickles.

    Raises:
        ArtifactError: for whatever comes out of a damaged file, or of the code that a sound one names.
    """
    try:
        return read()
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be opened ({type(error).__name__}: {error})",
            layer=path.name,
            remedy="Copy or save the file again; the code that it names must be importable",
        ) from error


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(verb: str, names: list[str], others: Iterable[str]) -> str:
    """``"lacks 'a' (nearest: 'b'), 'c' and 7 more"``, or "" for no names."""
    if not names:
        return ""
    candidates = list(others)
    parts = []
    for name in names[:_SHOWN]:
        near = difflib.get_close_matches(name, candidates, n=1)
        parts.append(f"{name!r}" + (f" (nearest: {near[0]!r})" if near else ""))
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{verb} {', '.join(parts)}{rest}"


def _unpickle(path: Path, trust: bool) -> dict[str, Tensor]:
    if not trust:
        raise ArtifactError(
            f"{path} is a pickled file, which can run any code when it is opened",
            layer=path.name,
            remedy="Convert it to .safetensors where you trust it, or give trust=True (--trust)",
        )
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist", layer=path.name, remedy="Give an existing file of weights"
        )
    data = opened(lambda: torch.load(path, map_location="cpu", weights_only=False), path)
    if isinstance(data, nn.Module):
        data = data.state_dict()
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ArtifactError(
            f"{path} holds no state dict", layer=path.name, remedy="Save model.state_dict() instead"
        )
    return dict(data)
