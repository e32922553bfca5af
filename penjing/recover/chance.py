"""Where chance comes from: every draw is a function of the seed, the epoch and the step.

So there are no generator states to save: an epoch that starts after a resume starts with the same numbers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """A 63-bit seed from several integers, unlike for unlike parts."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def derived_generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


def seed_globals(*parts: int) -> None:
    """Seed the global generators (dropout, third-party loaders) by `derived_seed`."""
    seed = derived_seed(*parts)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (for loaders that still draw from the global one)


@contextmanager
def private_globals() -> Iterator[None]:
    """Give the global generators back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def loader_generators(data: Any) -> list[torch.Generator]:
    """Generators that a loader draws its order from, which outlive an epoch and so must be saved."""
    found = (getattr(holder, "generator", None) for holder in loader_parts(data))
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


def loader_parts(data: Any) -> list[Any]:
    """A loader and the samplers that choose its order, each once."""
    batches = getattr(data, "batch_sampler", None)
    parts = [data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None)]
    return list({id(one): one for one in parts if one is not None}.values())
