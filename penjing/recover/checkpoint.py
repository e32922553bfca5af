"""Checkpoints of a training run: a folder of safetensors files and one JSON file that points to them.

Tensors are written first, under new names; then the JSON file is renamed into place, and only then are the
old tensors deleted. A run killed at any moment leaves either the old checkpoint or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from penjing.errors import RecoverError
from penjing.files import atomic_write, read_json, write_json

_FORMAT = 1
INDEX = "state.json"
"""Written last: without it there is nothing to go on with."""


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name (shared ones once), persistent or not."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in named.items()}


def copied_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The same as copies on the CPU, for `restore_model`."""
    return {name: value.to("cpu", copy=True) for name, value in model_tensors(model).items()}


@torch.no_grad()
def restore_model(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy the saved values into the model's own tensors.

    Raises:
        RecoverError: when names or shapes differ.
    """
    mine = model_tensors(model)
    odd = next((name for name in mine.keys() ^ saved.keys()), None) or next(
        (name for name in mine if mine[name].shape != saved[name].shape), None
    )
    if odd is not None:
        raise RecoverError(
            "the checkpoint belongs to another model",
            layer=odd,
            remedy="Delete the checkpoint folder, or resume with the model it was made from",
        )
    for name, value in mine.items():
        value.copy_(saved[name])


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], tag: str
) -> None:
    """Write a checkpoint.

    Args:
        folder: Where it lives.
        state: Plain JSON.
        tensors: By part (``"model"``, ``"optimizer"``, ``"best"``…). Each part is a file of its own; an
            empty mapping keeps the file that part already has.
        tag: Part of the new files' names; another for every checkpoint.

    Raises:
        RunError: when the folder cannot be written.
    """
    files = dict(_read_index(folder)["files"]) if (folder / INDEX).exists() else {}
    for part, values in tensors.items():
        if not values:
            continue
        files[part] = f"{part}-{tag}.safetensors"
        with atomic_write(folder / files[part]) as aside:
            save_file(independent(values), aside)
    write_json(folder / INDEX, {"format": _FORMAT, "files": files, "state": dict(state)})
    for old in folder.glob("*.safetensors"):
        if old.name not in files.values():
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """The state and tensors of the checkpoint in ``folder``; None when there is none.

    Raises:
        RecoverError: when it is damaged.
    """
    if not (folder / INDEX).exists():
        return None
    index = _read_index(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    for part, name in index["files"].items():
        try:
            with safe_open(folder / name, framework="pt") as file:
                parts[part] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise _damaged(folder / name, error) from error
    return index["state"], parts


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = read_json(path)
        if index["format"] == _FORMAT and {"files", "state"} <= index.keys():
            return index  # type: ignore[no-any-return]
        raise ValueError(f"format {index['format']} instead of {_FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RecoverError:
    return RecoverError(
        f"the checkpoint cannot be read ({error})",
        layer=str(path),
        remedy="Delete the checkpoint folder to start this training again",
    )


def independent(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no storage, as the file format wants them."""
    seen: set[int] = set()
    result = {}
    for name, value in values.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result
