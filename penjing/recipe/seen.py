"""What is seen of data and networks that were handed over, so that a run notices when they are others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from penjing.data import Split
from penjing.naming import given_leaves
from penjing.recipe.store import hash_json
from penjing.recover.chance import private_globals, seed_globals

_SAMPLES = 16  # of a data set, evenly spread


def part_digests(name: str, part: Any) -> dict[str, str]:
    """Hashes of a part of the data (``"train"``) by what they are of: labels and first images, or what
    `loader_digest` sees of one's own loader; none where there is no such part.
    """
    if part is None:
        return {}
    if not isinstance(part, Split):
        return {f"batches of {name}": loader_digest(part)}
    held = {
        f"labels of {name}": torch.as_tensor(part.labels),
        f"first images of {name}": torch.as_tensor(part.fetch(np.arange(min(8, len(part))))),
    }
    return {what: values_digest({what: values}) for what, values in held.items()}


def loader_digest(batches: Iterable[Any]) -> str:
    """Hash of one's own loader: of a list of batches all of it; else how many there are, and samples.

    A loader may shuffle, so its batches say nothing; samples are those of its data set, if it has one that is
    indexed. Where a sample is not the same again, as under augmentation that nothing seeds, only their number
    counts.
    """
    if isinstance(batches, (list, tuple)):
        return values_digest(batches)
    dataset = getattr(batches, "dataset", None)
    facts = [_length(batches), _length(dataset)]
    with private_globals():
        once, again = _samples(dataset), _samples(dataset)
    return hash_json([*facts, once if once == again else None])


def values_digest(values: Any) -> str:
    """Hash of the tensors, arrays, numbers and texts in nested containers; anything else is not looked at."""
    named = {"/".join(path): value for path, value in given_leaves(values)}
    digest = hashlib.sha256()
    for name, value in sorted(named.items()):
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, (bool, int, float, str, bytes)):
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _samples(dataset: Any) -> str | None:
    count = _length(dataset)
    if not count or isinstance(dataset, Mapping):
        return None
    seed_globals(0)
    try:
        return values_digest([dataset[int(at)] for at in np.linspace(0, count - 1, min(count, _SAMPLES))])
    except Exception:  # a user's data set: what is wrong with it is said when it is read in earnest
        return None
